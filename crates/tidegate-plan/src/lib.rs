//! Pure planning and placement, and a checker written apart from it.
