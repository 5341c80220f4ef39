//! The seed disk: a small FAT file system with the files of cloud-init's source NoCloud. Pure, but for the file system
//! that is made in memory. They are JSON, which is YAML too and needs no escaping of ours.

use std::io::{self, Cursor, Write as _};

use drover_schemas::secret::Secret;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Map, Value, json};

use super::own::DiskError;
use crate::journal::VmRow;
use crate::network::NicLease;

/// The label by which it is found.
pub const LABEL: &str = "CIDATA";
/// Its length: all that a spec may say fits in a third of it.
const SIZE: usize = 1 << 20;

/// The files of a seed disk.
#[derive(Debug)]
pub struct Seed {
    meta_data: String,
    network_config: String,
    user_data: Secret,
    volume: u32,
}

impl Seed {
    /// That of a VM.
    #[must_use]
    pub fn of(row: &VmRow) -> Self {
        let keys = row.spec.seed.as_ref().map(|seed| seed.ssh_keys.clone()).unwrap_or_default();
        let mut meta_data = json!({"instance-id": row.vm_id, "local-hostname": row.name});
        if !keys.is_empty() {
            meta_data["public-keys"] = json!(keys);
        }
        // A file of nothing but its first line sets nothing; cloud-init wants one to be there.
        let nothing = || Secret::new("#cloud-config\n{}\n");
        Self {
            meta_data: pretty(&meta_data),
            network_config: pretty(&network_config(&row.nics)),
            user_data: row.user_data.clone().unwrap_or_else(nothing),
            // Whatever it is, it is the same at each start.
            volume: row.vm_id.as_u128() as u32,
        }
    }

    /// The disk.
    ///
    /// # Errors
    /// The files have no room on it, which the limits of a spec exclude.
    pub fn image(&self) -> Result<Vec<u8>, DiskError> {
        self.write().map_err(DiskError::Write)
    }

    fn write(&self) -> io::Result<Vec<u8>> {
        let mut disk = Cursor::new(vec![0; SIZE]);
        let label = *b"CIDATA     ";
        let options =
            FormatVolumeOptions::new().fat_type(FatType::Fat12).volume_label(label).volume_id(self.volume);
        fatfs::format_volume(&mut disk, options)?;
        let volume = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, text) in [
            ("meta-data", self.meta_data.as_str()),
            ("network-config", &self.network_config),
            ("user-data", self.user_data.reveal()),
        ] {
            let mut file = volume.root_dir().create_file(name)?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        volume.unmount()?;
        Ok(disk.into_inner())
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Addresses by MAC, in version 2 of cloud-init's format, which netplan reads too.
fn network_config(nics: &[NicLease]) -> Value {
    let mut ethernets = Map::new();
    for (index, nic) in nics.iter().enumerate() {
        let mut one = json!({
            "match": {"macaddress": nic.mac},
            "dhcp4": false,
            "addresses": [format!("{}/{}", nic.ipv4, nic.prefix_len)],
        });
        // A guest has one default.
        if index == 0 {
            one["routes"] = json!([{"to": "0.0.0.0/0", "via": nic.gateway}]);
        }
        ethernets.insert(format!("net{index}"), one);
    }
    json!({"version": 2, "ethernets": ethernets})
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use drover_schemas::body::spec::SeedSpec;

    use super::*;

    fn files(image: &mut Vec<u8>) -> Vec<(String, String)> {
        let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        assert_eq!(volume.read_volume_label_from_root_dir().unwrap().as_deref(), Some(LABEL));
        let entries = volume.root_dir().iter().map(|entry| {
            let entry = entry.unwrap();
            let mut text = String::new();
            entry.to_file().read_to_string(&mut text).unwrap();
            (entry.file_name(), text)
        });
        entries.collect()
    }

    #[test]
    fn a_seed_disk_has_three_files_and_is_the_same_again() {
        let mut row = crate::journal::tests::vm(7, "web", 1);
        row.spec.seed =
            Some(SeedSpec { ssh_keys: vec!["ssh-rsa \"quoted\": key".into()], ..SeedSpec::default() });
        row.user_data = Some(Secret::new("#!/bin/sh\necho hunter2\n"));
        let mut image = Seed::of(&row).image().unwrap();
        assert_eq!((image.len(), &image), (SIZE, &Seed::of(&row).image().unwrap()));
        let files = files(&mut image);
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["meta-data", "network-config", "user-data"]);
        let meta: Value = serde_json::from_str(&files[0].1).unwrap();
        assert_eq!(
            meta,
            json!({"instance-id": row.vm_id, "local-hostname": "web",
                                "public-keys": ["ssh-rsa \"quoted\": key"]})
        );
        let network: Value = serde_json::from_str(&files[1].1).unwrap();
        assert_eq!(network["version"], 2);
        assert_eq!(network["ethernets"].as_object().unwrap().len(), row.nics.len());
        for (index, nic) in row.nics.iter().enumerate() {
            let one = &network["ethernets"][format!("net{index}")];
            assert_eq!(
                (&one["match"]["macaddress"], one["routes"].is_array()),
                (&json!(nic.mac), index == 0)
            );
            assert_eq!(one["addresses"], json!([format!("{}/{}", nic.ipv4, nic.prefix_len)]));
        }
        assert_eq!(files[2].1, "#!/bin/sh\necho hunter2\n");
    }

    #[test]
    fn the_most_that_a_spec_may_say_fits() {
        let mut row = crate::journal::tests::vm(7, "web", 1);
        let nic = row.nics.first().cloned();
        row.nics = nic.into_iter().cycle().take(8).collect();
        row.spec.seed = Some(SeedSpec { ssh_keys: vec!["\"".repeat(4096); 32], ..SeedSpec::default() });
        row.user_data = Some(Secret::new("x".repeat(16 * 1024)));
        let mut image = Seed::of(&row).image().unwrap();
        assert_eq!(files(&mut image)[2].1.len(), 16 * 1024);
        // And nothing is said of what is not there.
        row.user_data = None;
        row.spec.seed = Some(SeedSpec::default());
        let files = files(&mut Seed::of(&row).image().unwrap());
        assert_eq!(files[2].1, "#cloud-config\n{}\n");
        assert!(!files[0].1.contains("public-keys"));
    }
}
