//! What a machine has to compute with besides its processors, as Linux shows it: NVIDIA's and AMD's graphics processors,
//! Google's tensor processors.
//!
//! Sources: the documentation of NVIDIA's driver (`/proc/driver/nvidia/gpus/*/information`), of the kernel's `amdkfd`
//! and of Google's Cloud TPU virtual machines (`/dev/accel*`).

use std::fs;
use std::path::{Path, PathBuf};

/// AMD's number among makers of PCI devices.
const AMD: &str = "0x1002";
/// What NVIDIA's driver has for all of its devices.
const NVIDIA_SHARED: [&str; 5] = [
    "nvidiactl",
    "nvidia-uvm",
    "nvidia-uvm-tools",
    "nvidia-modeset",
    "nvidia-caps",
];
/// What their libraries read about the machine.
const SHOWN: [&str; 7] = [
    "/sys/devices",
    "/sys/dev/char",
    "/sys/bus/pci",
    "/sys/class/pci_bus",
    "/sys/class/drm",
    "/sys/class/kfd",
    "/sys/module",
];

/// The accelerators of this machine.
#[derive(Debug, Default)]
pub(crate) struct Accelerators {
    /// One for each.
    names: Vec<String>,
    /// What a command opens to use them.
    devices: Vec<PathBuf>,
    /// What is not there and should be.
    missing: Option<&'static str>,
}

impl Accelerators {
    /// Looks for them in `dev`, `proc` and `sys` below `root`.
    pub(crate) fn find(root: &Path) -> Self {
        let mut found = Self::default();
        found.nvidia(root);
        found.amd(root);
        found.tensor(root);
        found
    }

    fn nvidia(&mut self, root: &Path) {
        let devices = numbered(&root.join("dev"), "nvidia");
        if devices.is_empty() {
            return;
        }
        // The driver's texts say which device each is.
        let texts = entries(&root.join("proc/driver/nvidia/gpus"));
        let texts: Vec<String> = texts
            .iter()
            .filter_map(|folder| fs::read_to_string(folder.join("information")).ok())
            .collect();
        for (number, device) in devices {
            let number = number.to_string();
            let own = texts
                .iter()
                .find(|text| value(text, "Device Minor") == Some(number.as_str()));
            let model = own.and_then(|text| value(text, "Model")).and_then(plain);
            self.names.push(model.unwrap_or_else(|| "NVIDIA".to_owned()));
            self.devices.push(device);
        }
        if !root.join("dev/nvidia-uvm").exists() {
            self.missing = Some("/dev/nvidia-uvm");
        }
        let shared = NVIDIA_SHARED.map(|name| root.join("dev").join(name));
        self.devices.extend(shared.into_iter().filter(|path| path.exists()));
    }

    fn amd(&mut self, root: &Path) {
        let all = root.join("dev/kfd");
        if !all.exists() {
            return;
        }
        let before = self.names.len();
        for (number, device) in numbered(&root.join("dev/dri"), "renderD") {
            let maker = root.join(format!("sys/class/drm/renderD{number}/device/vendor"));
            if fs::read_to_string(maker).is_ok_and(|maker| maker.trim() == AMD) {
                self.names.push("AMD".to_owned());
                self.devices.push(device);
            }
        }
        if self.names.len() > before {
            self.devices.push(all);
        }
    }

    fn tensor(&mut self, root: &Path) {
        for (_, device) in numbered(&root.join("dev"), "accel") {
            self.names.push("TPU".to_owned());
            self.devices.push(device);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.names.len()
    }

    /// What to open for a command that uses them: devices, and what it reads about the machine.
    pub(crate) fn open(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        (self.devices.clone(), SHOWN.map(PathBuf::from).into())
    }

    /// A line for the log, where there is something to say: the job asks for so many.
    pub(crate) fn note(&self, asked: u32) -> Option<String> {
        let mut kinds: Vec<(String, usize)> = Vec::new();
        for name in &self.names {
            match kinds.iter_mut().find(|(kind, _)| kind == name) {
                Some((_, count)) => *count += 1,
                None => kinds.push((name.clone(), 1)),
            }
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let what = kinds.join(", ");
        match (self.count(), asked) {
            (0, _) => None,
            (_, 0) => Some(format!(
                "the machine has accelerators ({what}); `resources: {{accelerators: …}}` does not ask for them, and they stay closed"
            )),
            _ => Some(match self.missing {
                None => format!("the machine's accelerators: {what}"),
                Some(device) => format!("the machine's accelerators: {what}; {device} is not there, and CUDA needs it"),
            }),
        }
    }
}

/// Entries of a folder named by a word and a number, in the order of their numbers.
fn numbered(folder: &Path, word: &str) -> Vec<(u32, PathBuf)> {
    let named = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.strip_prefix(word)?.parse().ok()?;
        Some((number, path))
    };
    let mut found: Vec<(u32, PathBuf)> = entries(folder).into_iter().filter_map(named).collect();
    found.sort();
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// What stands behind `key:` on a line of its own.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'));
    line.map(str::trim)
}

/// A name as it is shown, if it is one.
fn plain(name: &str) -> Option<String> {
    let good = (1..=60).contains(&name.len()) && name.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    good.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn a_machine_without_any_has_nothing_to_say() {
        let machine = tempfile::tempdir().unwrap();
        let none = Accelerators::find(machine.path());
        assert_eq!((none.count(), none.note(0)), (0, None));
        // AMD's interface is there wherever its driver is, and others have such devices, too.
        write(machine.path(), "dev/kfd", "");
        write(machine.path(), "dev/dri/renderD128", "");
        write(machine.path(), "sys/class/drm/renderD128/device/vendor", "0x8086\n");
        write(machine.path(), "dev/nvidiactl", "");
        let none = Accelerators::find(machine.path());
        assert_eq!(none.count(), 0);
        assert!(none.open().0.is_empty(), "nothing is opened for nothing");
    }

    #[test]
    fn each_maker_shows_them_in_its_own_way() {
        let machine = tempfile::tempdir().unwrap();
        let root = machine.path();
        for (number, bus, model) in [
            (0, "0000:00:04.0", "Tesla T4"),
            (1, "0000:00:05.0", "Tesla T4"),
            (10, "0000:00:06.0", "\u{1b}[31m"),
        ] {
            write(root, &format!("dev/nvidia{number}"), "");
            let text = format!("Model: \t\t {model}\nIRQ:   \t\t 33\nDevice Minor: \t {number}\n");
            write(root, &format!("proc/driver/nvidia/gpus/{bus}/information"), &text);
        }
        write(root, "dev/nvidiactl", "");
        let note = Accelerators::find(root).note(3).unwrap();
        assert!(
            note.ends_with("2 Tesla T4, 1 NVIDIA; /dev/nvidia-uvm is not there, and CUDA needs it"),
            "{note}"
        );
        write(root, "dev/nvidia-uvm", "");
        write(root, "dev/kfd", "");
        write(root, "dev/dri/renderD129", "");
        write(root, "sys/class/drm/renderD129/device/vendor", "0x1002\n");
        write(root, "dev/accel0", "");
        let found = Accelerators::find(root);
        assert_eq!(found.names, ["Tesla T4", "Tesla T4", "NVIDIA", "AMD", "TPU"]);
        assert_eq!(
            found.note(2).unwrap(),
            "the machine's accelerators: 2 Tesla T4, 1 NVIDIA, 1 AMD, 1 TPU"
        );
        assert!(found.note(0).unwrap().contains("stay closed"));
        let opened: Vec<_> = found
            .devices
            .iter()
            .map(|path| path.strip_prefix(root).unwrap())
            .collect();
        let expected = [
            "dev/nvidia0",
            "dev/nvidia1",
            "dev/nvidia10",
            "dev/nvidiactl",
            "dev/nvidia-uvm",
            "dev/dri/renderD129",
            "dev/kfd",
            "dev/accel0",
        ];
        assert_eq!(opened, expected.map(Path::new));
    }
}
