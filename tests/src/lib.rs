//! Front ends, fixtures and helpers for the test suites.

pub mod guest;
