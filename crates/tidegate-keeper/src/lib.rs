//! The actor that alone holds a private site's keys: custody, permits, admission, key release, home split.
