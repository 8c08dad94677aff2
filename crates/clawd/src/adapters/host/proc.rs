//! Formats of /proc. Sources: proc(5), and `Documentation/accounting/psi.rst` of the kernel.

use claw_core::report::Pressure;

/// Time that all cores together have spent, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CpuTimes {
    busy: u64,
    total: u64,
}

impl CpuTimes {
    /// Thousandths of all cores' time between `earlier` and now that were busy.
    pub(super) fn permille_since(self, earlier: Self) -> u32 {
        let busy = self.busy.saturating_sub(earlier.busy);
        let total = self.total.saturating_sub(earlier.total);
        let permille = busy.saturating_mul(1000).checked_div(total).unwrap_or(0);
        u32::try_from(permille).unwrap_or(1000).min(1000)
    }
}

/// Reads the first line of `/proc/stat`: `cpu user nice system idle iowait irq softirq steal …`.
///
/// Guest time is part of user time; waiting for a disk is idle.
pub(super) fn cpu_times(stat: &str) -> CpuTimes {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).take(8).map_while(|tick| tick.parse().ok()).collect();
    let total: u64 = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    CpuTimes { busy: total.saturating_sub(idle), total }
}

/// Counts the cores in `/proc/stat`.
pub(super) fn cpu_count(stat: &str) -> u32 {
    let cores = stat.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// Reads the three averages of `/proc/loadavg`, × 100.
pub(super) fn load(loadavg: &str) -> [u32; 3] {
    let mut loads = [0; 3];
    for (load, text) in loads.iter_mut().zip(loadavg.split_ascii_whitespace()) {
        *load = centi(text).unwrap_or(0);
    }
    loads
}

/// Reads one file of `/proc/pressure`. Before Linux 5.13 the one for CPU has no `full` line.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let avg10 = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.split_ascii_whitespace().find_map(|field| field.strip_prefix("avg10=")).and_then(centi)
    };
    Some(Pressure {
        some_avg10_centi: avg10("some ")?,
        full_avg10_centi: avg10("full ").unwrap_or(0),
    })
}

/// A decimal number × 100; further places are cut off.
fn centi(text: &str) -> Option<u32> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let whole: u32 = whole.parse().ok()?;
    let hundredths = places
        .chars()
        .chain(std::iter::repeat('0'))
        .take(2)
        .try_fold(0, |sum: u32, digit| Some(sum * 10 + digit.to_digit(10)?))?;
    whole.checked_mul(100)?.checked_add(hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_busy_or_idle() {
        let earlier = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5 cpu\n";
        let later = "cpu  160 0 60 820 60 0 0 0 0 0\n";
        let since = cpu_times(later).permille_since(cpu_times(earlier));
        assert_eq!(since, 700, "70 of 100 ticks");
        assert_eq!(cpu_count(earlier), 2);
        assert_eq!(cpu_times(later).permille_since(cpu_times(later)), 0, "no time has passed");
        assert_eq!(cpu_times(earlier).permille_since(cpu_times(later)), 0, "time went back");
        assert_eq!(cpu_times(""), CpuTimes::default());
    }

    #[test]
    fn decimals() {
        assert_eq!(load("0.37 12.5 3 1/200 4711\n"), [37, 1250, 300]);
        assert_eq!(load(""), [0; 3]);
        assert_eq!(centi("1.239"), Some(123));
        assert_eq!(centi("-1"), None);
        assert_eq!(centi("1.x"), None);
        assert_eq!(centi("99999999999"), None);
    }

    #[test]
    fn pressure_of_new_and_old_kernels() {
        let new = "some avg10=1.50 avg60=0.80 avg300=0.20 total=100\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=9\n";
        let expected = Pressure { some_avg10_centi: 150, full_avg10_centi: 25 };
        assert_eq!(pressure(new), Some(expected));
        let old = "some avg10=1.50 avg60=0.80 avg300=0.20 total=100\n";
        let expected = Pressure { some_avg10_centi: 150, full_avg10_centi: 0 };
        assert_eq!(pressure(old), Some(expected));
        assert_eq!(pressure(""), None, "the kernel was built without it");
    }
}
