//! One file for each outside thing: it implements a port of [`crate::ports`], and nobody else knows
//! the thing behind it.
//!
//! Adapters hold no policy: when, how often and why are decided elsewhere. Each is held to the
//! contract suite of its port (`crate::contract`), which its fake passes too.
//!
//! | adapter | port | knows |
//! | --- | --- | --- |
//! | [`docker`] | `Runtime`, `Trials`, `Inside` | Docker's API (bollard) |
//! | [`nginx`] | `Proxy` | nginx and its configuration language |
//! | [`files`] | `Files` | file systems, tmpfs, symbolic links |
//! | [`volumes`] | `Volumes` | trees of files: copying, comparing, removing |
//! | [`gateway`] | `Gateway`, `Control` | OpenClaw's probes and RPC |
//! | [`host`] | `Host` | /proc, cgroups, sysinfo |
//! | [`uplink`] | `Uplink` | the way to the coordinator |
//! | [`iptables`] | `Firewall`, `Traffic` | iptables, ip6tables, ipset, conntrack, nf_tables' netlink, where sshd listens |
//! | [`login_log`] | `LoginLog` | journalctl, sshd's log |
//! | [`dns_forwarder`] | `Resolver` | the files between clawd and `clawd dns` |
//! | [`snapshots`] | `Snapshots` | processes of `clawd snap-worker`, keys of repositories |
//! | [`clock`] | `Clock` | time and randomness of the machine |
//! | [`command`] | – | how programs are run |

pub mod clock;
pub mod command;
pub mod dns_forwarder;
pub mod docker;
pub mod files;
pub mod gateway;
pub mod host;
pub mod iptables;
pub mod login_log;
pub mod nginx;
pub mod snapshots;
pub mod uplink;
pub mod volumes;
