//! Whole processes, driven with raw requests.

mod cluster;
mod embedded;
mod raw;

use std::path::Path;

/// A small file system of its own; `None` if this process may not mount.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let output = mount.arg(dir.path()).output();
        output.is_ok_and(|o| o.status.success()).then(|| Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let done = umount.arg("--lazy").arg(self.0.path()).status();
        assert!(done.unwrap().success());
    }
}
