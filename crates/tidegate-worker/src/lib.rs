//! The process beside the user's command: ticket, mailbox, hello, sandbox, sealing.
