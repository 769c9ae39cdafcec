//! Front ends, fixtures and helpers for the test suites.
