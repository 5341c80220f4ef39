//! Which file systems can be frozen or trimmed, and in which order: pure, from the text of `/proc/self/mountinfo`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use drover_schemas::guest::SkippedMount;

use crate::mounts;
pub(super) use crate::mounts::Mount;

/// How many lines are read.
const MAX_MOUNTS: usize = 8192;
/// Loop devices, by the kernel's list of majors.
const LOOP: u32 = 7;
/// What lies on other machines.
const REMOTE: [&str; 10] = ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "ocfs2", "gfs2"];

impl Mount {
    fn is_served_by_a_program(&self) -> bool {
        self.fs_type.starts_with("fuse")
    }

    /// On a device of this machine. Some file systems make a number of their own and name the device.
    fn is_local(&self) -> bool {
        !self.is_served_by_a_program()
            && !REMOTE.contains(&self.fs_type.as_str())
            && (self.dev.0 != 0 || self.source.starts_with("/dev/"))
    }
}

/// The mounts of a list of the kernel.
pub(super) fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mounts::parse(mountinfo, MAX_MOUNTS)
}

/// A file system and the mounts through which it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) mounts: Vec<Mount>,
}

impl Target {
    /// The mount that stands for the others.
    pub(super) fn first(&self) -> &Mount {
        &self.mounts[0]
    }
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// In the order in which it is safe to freeze them.
    pub(super) targets: Vec<Target>,
    pub(super) skipped: Vec<SkippedMount>,
}

/// A place that was named and cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing is mounted there.
    NotMounted(String),
    /// It is no file system of this machine that can be written.
    NotLocal(String),
}

/// Chooses file systems. `backing` tells which file a device is made of. One that lies in a file of another comes
/// before it, for what it writes at last must get there.
pub(super) fn choose(
    mounts: &[Mount],
    wanted: Option<&[String]>,
    backing: impl Fn((u32, u32)) -> Option<PathBuf>,
) -> Result<Chosen, Refusal> {
    let is_wanted =
        |mount: &Mount| wanted.is_none_or(|names| names.iter().any(|name| Path::new(name) == mount.point));
    for name in wanted.unwrap_or_default() {
        // What was mounted last at a place is what is seen there.
        match mounts.iter().rev().find(|mount| mount.point == Path::new(name)) {
            None => return Err(Refusal::NotMounted(name.clone())),
            Some(mount) if !(mount.is_local() && mount.writable) => {
                return Err(Refusal::NotLocal(name.clone()));
            }
            Some(_) => {}
        }
    }
    let mut chosen = Chosen::default();
    for mount in mounts {
        if mount.is_local() && mount.writable {
            match chosen.targets.iter_mut().find(|target| target.first().dev == mount.dev) {
                Some(target) => target.mounts.push(mount.clone()),
                None => chosen.targets.push(Target { mounts: vec![mount.clone()] }),
            }
        } else if is_wanted(mount)
            && (mount.is_served_by_a_program() || REMOTE.contains(&mount.fs_type.as_str()))
        {
            let reason = match mount.is_served_by_a_program() {
                true => "a program of the guest serves it, which may need what is frozen",
                false => "it is not local; freeze it where it is",
            };
            chosen.skipped.push(SkippedMount { mount: mount.shown(), reason: reason.to_owned() });
        }
    }
    chosen.targets.retain(|target| target.mounts.iter().any(is_wanted));
    chosen.targets.reverse();
    inner_first(&mut chosen.targets, mounts, backing);
    Ok(chosen)
}

/// Moves what lies in a file of another before it.
fn inner_first(targets: &mut Vec<Target>, mounts: &[Mount], backing: impl Fn((u32, u32)) -> Option<PathBuf>) {
    let outer_of = |dev: (u32, u32)| {
        let file = (dev.0 == LOOP).then(|| backing(dev)).flatten()?;
        let around = mounts.iter().filter(|mount| file.starts_with(&mount.point));
        // The last of the longest: later mounts hide earlier ones.
        around.max_by_key(|mount| mount.point.as_os_str().as_bytes().len()).map(|mount| mount.dev)
    };
    let outer: Vec<_> =
        targets.iter().map(|target| (target.first().dev, outer_of(target.first().dev))).collect();
    // Each pass moves at least one to its place, if a place there is.
    for _ in 0..targets.len() {
        let place = |dev| targets.iter().position(|target| target.first().dev == dev);
        let wrong = outer.iter().find_map(|(inner, outer)| {
            let (from, to) = (place(*inner)?, place((*outer)?)?);
            (from > to).then_some((from, to))
        });
        let Some((from, to)) = wrong else { return };
        let target = targets.remove(from);
        targets.insert(to, target);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a Debian 12 machine tells it, with a loop device, a bind mount, a share and a program's file system.
    const MOUNTINFO: &[u8] = b"\
22 29 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
23 29 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:14 - proc proc rw
26 29 0:24 / /run rw,nosuid,nodev,noexec,relatime shared:5 - tmpfs tmpfs rw,size=811364k,mode=755,inode64
29 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
40 29 254:15 / /boot/efi rw,relatime shared:33 - vfat /dev/vda15 rw,fmask=0022,dmask=0022
41 29 254:32 / /srv/my\\040data rw,relatime shared:34 - xfs /dev/vdc rw,attr2,inode64
42 29 7:0 / /mnt/image rw,relatime shared:35 - ext4 /dev/loop0 rw
43 29 254:1 /home /mnt/home rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
44 29 11:0 / /media/cdrom ro,relatime shared:36 - iso9660 /dev/sr0 ro,nojoliet
45 29 0:44 / /mnt/share rw,relatime shared:37 - nfs4 10.0.0.1:/export rw,vers=4.2
46 29 0:45 / /mnt/own rw,nosuid,nodev,relatime shared:38 - fuse.sshfs user@there:/ rw,user_id=1000
47 29 0:46 / /var/lib/pool rw,relatime shared:39 - btrfs /dev/vdd rw,space_cache=v2,subvol=/
";

    fn points(chosen: &Chosen) -> Vec<String> {
        chosen.targets.iter().map(|target| target.first().shown()).collect()
    }

    #[test]
    fn local_file_systems_that_can_be_written_are_chosen_once_the_last_one_first() {
        let mounts = parse(MOUNTINFO);
        assert_eq!(mounts.len(), 12);
        let chosen = choose(&mounts, None, |_| None).unwrap();
        assert_eq!(points(&chosen), ["/var/lib/pool", "/mnt/image", "/srv/my data", "/boot/efi", "/"]);
        assert_eq!(chosen.targets[4].mounts.len(), 2);
        let skipped: Vec<_> = chosen.skipped.iter().map(|s| s.mount.as_str()).collect();
        assert_eq!(skipped, ["/mnt/share", "/mnt/own"]);
    }

    #[test]
    fn a_place_that_is_named_is_all_that_is_chosen() {
        let mounts = parse(MOUNTINFO);
        let named = |name: &str| choose(&mounts, Some(&[name.to_owned()]), |_| None);
        assert_eq!(points(&named("/srv/my data").unwrap()), ["/srv/my data"]);
        // By any of its mounts.
        assert_eq!(points(&named("/mnt/home").unwrap()), ["/"]);
        assert_eq!(named("/srv").unwrap_err(), Refusal::NotMounted("/srv".into()));
        for name in ["/run", "/media/cdrom", "/mnt/share", "/mnt/own"] {
            assert_eq!(named(name).unwrap_err(), Refusal::NotLocal(name.into()));
        }
    }

    #[test]
    fn what_lies_in_a_file_of_another_comes_before_it() {
        let text = b"\
1 0 7:1 / /b rw - ext4 /dev/loop1 rw
2 0 254:0 / / rw - ext4 /dev/vda rw
3 0 254:1 / /a rw - ext4 /dev/vdb rw
4 0 7:0 / /c rw - ext4 /dev/loop0 rw
";
        let mounts = parse(text);
        // One in the other, though they were mounted the other way round.
        let backing = |dev: (u32, u32)| Some(if dev.1 == 1 { "/c/image" } else { "/a/image" }.into());
        let chosen = choose(&mounts, None, backing).unwrap();
        assert_eq!(points(&chosen), ["/b", "/c", "/a", "/"]);
        // A file that is nowhere, or a ring of them, moves nothing for ever.
        assert_eq!(choose(&mounts, None, |_| Some("nowhere".into())).unwrap().targets.len(), 4);
        let ring = |dev: (u32, u32)| Some(if dev.1 == 1 { "/c/image" } else { "/b/image" }.into());
        assert_eq!(choose(&mounts, None, ring).unwrap().targets.len(), 4);
    }

    #[test]
    fn a_path_of_any_length_is_cut() {
        let long = format!("1 0 254:0 / /{} rw - ext4 /dev/vda rw\n", "ä".repeat(3000));
        assert!(parse(long.as_bytes())[0].shown().len() <= 256);
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = choose(&parse(&bytes), None, |_| None);
        }

        #[test]
        fn lines_of_any_fields_are_survived(fields in "([0-9]{1,3} ){2}[0-9]{1,3}:[0-9]{1,3} (/[a-c\\\\0-7]{0,4} ){2}rw - (ext4|fuse|nfs) /dev/[a-c] (rw|ro)") {
            let mounts = parse(fields.as_bytes());
            prop_assert_eq!(mounts.len(), 1);
            let _ = choose(&mounts, Some(&["/a".to_owned()]), |_| Some("/a/b".into()));
        }
    }
}
