//! What `iptables-save` prints: read back, compared with what was rendered, printed again.
