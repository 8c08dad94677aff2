//! Whether a connection that is open may go on under a policy.
