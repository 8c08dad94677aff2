//! What is wrong with a policy: every fault at once, with its field.
