//! Mailboxes: signed, numbered, chained messages between keeper and worker over a store.
