//! A disk whose power can be cut: ext4 on a loop device. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// ext4 on a loop device, mounted on a folder; taken down when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    mount: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

impl LoopDisk {
    /// Makes one of `bytes`, sparse, below `dir`, and mounts it.
    ///
    /// # Errors
    /// Without root, loop devices or ext4; says what failed.
    pub fn make(dir: &Path, bytes: u64) -> Result<Self, String> {
        let disk = Self {
            image: dir.join("disk.img"),
            mount: dir.join("mount"),
        };
        std::fs::create_dir_all(&disk.mount).map_err(|e| e.to_string())?;
        let file = std::fs::File::create(&disk.image).map_err(|e| e.to_string())?;
        file.set_len(bytes).map_err(|e| e.to_string())?;
        run("mkfs.ext4", &["-q", "-F", text(&disk.image)])?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run(
            "mount",
            &["-o", "loop", text(&self.image), text(&self.mount)],
        )
    }

    /// Where it is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.mount
    }

    /// Power is back: only what was synced is there. Nobody may use it.
    ///
    /// # Errors
    /// If somebody uses it, or the journal cannot be replayed.
    pub fn remount(&self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    fn unmount(&self) -> Result<(), String> {
        run("umount", &[text(&self.mount)])
    }

    /// FS_IOC_SHUTDOWN without flushing the journal: as if the power went. From now on every write fails.
    ///
    /// # Errors
    /// If the file system does not support it.
    pub fn cut_power(&self) -> Result<(), String> {
        let script = "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run("python3", &["-c", script, text(&self.mount)])
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}
