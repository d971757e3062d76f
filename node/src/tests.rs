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

    /// From now on whoever opens a file can only read it, as after an error of some file systems.
    pub(crate) fn make_read_only(&self) {
        for options in [&["--bind"][..], &["-o", "remount,bind,ro"]] {
            let mut mount = std::process::Command::new("mount");
            let mount = mount.args(options).args([self.path(), self.path()]);
            assert!(mount.status().unwrap().success());
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Once for each time that something was mounted there.
        let umount = || {
            let mut umount = std::process::Command::new("umount");
            umount.arg("--lazy").arg(self.0.path()).output()
        };
        let succeeds = || umount().unwrap().status.success();
        assert!(succeeds());
        while succeeds() {}
    }
}
