//! What a machine is made of, and the QEMU arguments that say so.
//!
//! A snapshot can only be restored into the same hardware, so everything a guest could notice is in [`Hardware`], and
//! what is not there (files, sockets, addresses) is the same for all or may change.

use serde::{Deserialize, Serialize};
use warren_guest_api::machine::PORT;
use warren_guest_api::network::INSIDE_HARDWARE;

use crate::emulator::FIRMWARE;
use crate::plan::{Launch, Start};

/// Descriptors that QEMU is started with.
pub(crate) const TAP_FD: i32 = 3;
pub(crate) const AGENT_FD: i32 = 4;
pub(crate) const CONTROL_FD: i32 = 5;
pub(crate) const TEMPLATE_FD: i32 = 6;
pub(crate) const DISK_FD: i32 = 7;
pub(crate) const STATE_FD: i32 = 8;

/// Where QEMU finds what has to be a path, in the root made for it.
pub(crate) const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
pub(crate) const MEMORY: &str = "/memory";
pub(crate) const KERNEL: &str = "/kernel";
pub(crate) const INITRAMFS: &str = "/initramfs";

/// Bytes of translated code that software emulation keeps.
const TRANSLATION_MIB: u32 = 128;
/// What programs of today expect (x86-64-v2 and encryption), without what emulation is slow at: wide registers, whose state
/// every switch of tasks would save, and string instructions that a kernel would prefer to plain loops.
const EMULATED_CPU: &str =
    "qemu64,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2,+aes,+pclmulqdq,+rdrand,+movbe";
/// The end of the console that is kept, in bytes.
const CONSOLE_BYTES: u32 = 65536;

/// Who runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    Kvm,
    /// Slow, and the same in every other way.
    Emulation,
}

/// The part of a machine that a snapshot fixes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    pub accelerator: Accelerator,
    pub cpu_count: u32,
    pub memory_mb: u32,
}

impl Hardware {
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mb) << 20
    }

    /// The machine type. `microvm` starts faster and has less to attack; under emulation it hung early in 5 of 37 boots
    /// where `q35` never did.
    #[must_use]
    pub fn machine_type(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "microvm",
            Accelerator::Emulation => "q35",
        }
    }

    /// How devices are attached there: over PCI, or at fixed addresses.
    fn bus(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "device",
            Accelerator::Emulation => "pci",
        }
    }

    fn machine(&self) -> Vec<String> {
        // Snapshots are of devices only, without the self-description that a migration carries.
        let common = "memory-backend=memory,suppress-vmdesc=on";
        let (machine, accelerator, cpu) = match self.accelerator {
            Accelerator::Kvm => (
                format!("microvm,pcie=off,usb=off,rtc=on,isa-serial=on,x-option-roms=off,{common}"),
                "kvm".to_owned(),
                "host",
            ),
            Accelerator::Emulation => (
                format!("q35,smbus=off,sata=off,vmport=off,graphics=off,{common}"),
                format!("tcg,thread=multi,tb-size={TRANSLATION_MIB}"),
                EMULATED_CPU,
            ),
        };
        let memory =
            format!("memory-backend-file,id=memory,size={}M,mem-path={MEMORY},share=on", self.memory_mb);
        words(&[
            "-machine",
            &machine,
            "-accel",
            &accelerator,
            "-cpu",
            cpu,
            "-smp",
            &self.cpu_count.to_string(),
            "-m",
            &format!("{}M", self.memory_mb),
            "-object",
            &memory,
            "-global",
            "migration.send-configuration=off",
        ])
    }
}

/// The whole command line.
pub(crate) fn arguments(launch: &Launch) -> Vec<String> {
    let hardware = &launch.hardware;
    let mut arguments = words(&[
        PROGRAM,
        "-nodefaults",
        "-no-user-config",
        "-L",
        FIRMWARE,
        "-display",
        "none",
        // A guest that restarts ends; whoever wants it starts it again.
        "-no-reboot",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-name",
        "sandbox",
    ]);
    arguments.extend(hardware.machine());
    arguments.extend(channels(hardware.bus()));
    arguments.extend(disks(launch));
    arguments.extend(network(hardware.bus()));
    arguments
        .extend(words(&["-device", &format!("virtio-balloon-{},free-page-reporting=on", hardware.bus())]));
    match launch.start {
        Start::Boot { .. } => arguments.extend(words(&[
            "-kernel",
            KERNEL,
            "-initrd",
            INITRAMFS,
            "-append",
            &command_line(hardware.accelerator),
        ])),
        Start::Restore => arguments.extend(words(&["-incoming", &format!("fd:{STATE_FD}")])),
    }
    arguments
}

/// What the kernel is told. What follows the two dashes is for the agent.
fn command_line(accelerator: Accelerator) -> String {
    let own = match accelerator {
        Accelerator::Kvm => "",
        // What protects a processor's guesses protects nothing that is emulated, and makes it slow; so do checks for
        // faults of the kernel itself.
        Accelerator::Emulation => {
            "tsc=reliable no_timer_check mitigations=off init_on_alloc=0 kfence.sample_interval=0 \
             hardened_usercopy=off nowatchdog apparmor=0 audit=0 "
        }
    };
    format!("console=ttyS0 quiet panic=-1 reboot=t {own}random.trust_cpu=on net.ifnames=0 -- machine")
}

fn channels(bus: &str) -> Vec<String> {
    words(&[
        "-chardev",
        &format!("socket,id=control,fd={CONTROL_FD},server=on,wait=off"),
        "-mon",
        "chardev=control,mode=control",
        "-chardev",
        &format!("ringbuf,id=console,size={CONSOLE_BYTES}"),
        "-serial",
        "chardev:console",
        "-chardev",
        &format!("socket,id=agent,fd={AGENT_FD},server=on,wait=off"),
        "-device",
        &format!("virtio-serial-{bus}"),
        "-device",
        &format!("virtserialport,chardev=agent,name={PORT}"),
    ])
}

fn disks(launch: &Launch) -> Vec<String> {
    let bus = launch.hardware.bus();
    let (bytes, operations) = (launch.io_bytes_per_second, launch.io_operations_per_second);
    // The first is the template; their order is the guest's.
    words(&[
        "-add-fd",
        &format!("fd={TEMPLATE_FD},set=1"),
        "-add-fd",
        &format!("fd={DISK_FD},set=2"),
        "-object",
        &format!(
            "throttle-group,id=limits,x-bps-read={bytes},x-bps-write={bytes},x-iops-read={operations},x-iops-write={operations}"
        ),
        "-blockdev",
        "driver=raw,node-name=template,read-only=on,file.driver=file,file.filename=/dev/fdset/1,file.locking=off",
        "-blockdev",
        "driver=throttle,node-name=disk,throttle-group=limits,discard=unmap,file.driver=raw,file.discard=unmap,\
         file.file.driver=file,file.file.filename=/dev/fdset/2,file.file.discard=unmap,file.file.locking=off",
        "-device",
        &format!("virtio-blk-{bus},drive=template"),
        "-device",
        &format!("virtio-blk-{bus},drive=disk"),
    ])
}

fn network(bus: &str) -> Vec<String> {
    let hardware: Vec<String> = INSIDE_HARDWARE.iter().map(|byte| format!("{byte:02x}")).collect();
    let no_rom = if bus == "pci" { ",romfile=" } else { "" };
    words(&[
        "-netdev",
        &format!("tap,id=network,fd={TAP_FD}"),
        "-device",
        &format!("virtio-net-{bus},netdev=network,mac={}{no_rom}", hardware.join(":")),
    ])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
