//! The emulator's command line: the one file that knows qemu (`man 1 qemu-system-x86_64`).

use std::process::Stdio;

use anyhow::Result;

use super::{Vm, disk};
use crate::Process;
use crate::process::{Launch, command};

/// What the machine writes to its serial port, within its directory.
pub(super) const CONSOLE: &str = "console.log";

/// What the emulator itself says, within the machine's directory.
const LOG: &str = "qemu.log";

/// Emulation in software, one thread for each processor. Nested hardware virtualisation is
/// deliberately not used: where it is there it may be broken.
const ACCELERATOR: &str = "tcg,thread=multi,tb-size=512";

/// The network file names `eth0`; warnings of the kernel show on the console.
const KERNEL_ARGUMENTS: &str = "root=LABEL=root rw console=ttyS0 loglevel=4 net.ifnames=0";

/// Switches a machine on. The emulator dies with this process.
pub(super) fn start(vm: &Vm) -> Result<Process> {
    let (memory, processors) = (vm.options.memory_mib, vm.options.processors);
    let mut qemu = command("qemu-system-x86_64");
    // Relative paths only: qemu takes a comma in a path for the end of it.
    qemu.current_dir(&vm.dir).stdin(Stdio::null());
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"]);
    qemu.args(["-accel", ACCELERATOR, "-cpu", "max", "-smp"]).arg(processors.to_string());
    qemu.arg("-m").arg(memory.to_string());
    qemu.arg("-kernel").arg(&vm.base.kernel).arg("-initrd").arg(&vm.base.initrd);
    qemu.args(["-append", KERNEL_ARGUMENTS]);
    // Not flushing to the machine's own disk is safe here: a power cut kills qemu, not the machine.
    let disk = disk::DISK;
    qemu.arg("-drive").arg(format!("file={disk},format=raw,if=virtio,cache=unsafe,discard=unmap"));
    let port = vm.port();
    qemu.arg("-netdev").arg(format!("tap,id=net,ifname={port},script=no,downscript=no"));
    let index = vm.index;
    // A fixed hardware address: neighbours need not learn a rebooted machine anew.
    qemu.arg("-device")
        .arg(format!("virtio-net-pci,netdev=net,mac=02:00:00:00:00:{index:02x},romfile="));
    qemu.args(["-device", "virtio-rng-pci"]);
    qemu.arg("-chardev").arg(format!("file,id=console,path={CONSOLE},append=on"));
    qemu.args(["-serial", "chardev:console"]);
    let internet = vm.lab.internet.clone();
    let launch = Launch::plain(qemu).prepared(move || internet.enter());
    launch.logging_to(vm.dir.join(LOG))?.spawn()
}
