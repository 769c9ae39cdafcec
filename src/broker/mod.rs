//! TRUSTED: prepares the worker's world, starts it, serves its few requests, reaps it.
