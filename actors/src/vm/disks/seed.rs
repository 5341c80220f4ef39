//! The seed disk: a small FAT file system with the files of cloud-init's source NoCloud. They are JSON, which is YAML too
//! and needs no escaping of ours.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use drover_schemas::body::spec::{NicSetup, NicSpec};
use drover_schemas::secret::Secret;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Map, Value, json};

use super::agent;
use super::own::DiskError;
use crate::journal::VmRow;
use crate::network::NicLease;

/// The label by which it is found.
pub const LABEL: &str = "CIDATA";
/// Its length: all that a spec may say fits in a third of it.
const SIZE: u64 = 1 << 20;
/// Of the program of the agent few and long parts are written.
const CLUSTER: u32 = 32 << 10;

/// The files of a seed disk.
#[derive(Debug)]
pub struct Seed {
    meta_data: String,
    network_config: String,
    user_data: Secret,
    agent: Option<PathBuf>,
    volume: u32,
}

impl Seed {
    /// That of a VM, on a host that may have an agent for guests. `names` is who knows names on the network of its first
    /// interface, and how these end.
    ///
    /// # Errors
    /// The VM is to have the agent, and there is none.
    pub fn of(
        row: &VmRow,
        agent: Option<&Path>,
        names: Option<(Ipv4Addr, String)>,
    ) -> Result<Self, DiskError> {
        let wants_agent = row.spec.seed.as_ref().is_some_and(|seed| seed.agent);
        let agent = wants_agent.then(|| agent.map(Path::to_owned).ok_or(DiskError::NoAgent));
        let keys = row.spec.seed.as_ref().map(|seed| seed.ssh_keys.clone()).unwrap_or_default();
        let mut meta_data = json!({"instance-id": row.vm_id, "local-hostname": row.name});
        if !keys.is_empty() {
            meta_data["public-keys"] = json!(keys);
        }
        // A file of nothing but its first line sets nothing; cloud-init wants one to be there.
        let nothing = || Secret::new("#cloud-config\n{}\n");
        Ok(Self {
            meta_data: pretty(&meta_data),
            network_config: pretty(&network_config(&row.spec.nics, &row.nics, names)),
            user_data: row.user_data.clone().unwrap_or_else(nothing),
            agent: agent.transpose()?,
            // Whatever it is, it is the same at each start.
            volume: row.vm_id.as_u128() as u32,
        })
    }

    /// Writes the disk into an empty file.
    ///
    /// # Errors
    /// The file cannot be written, or the agent not be read. All else has room, by the limits of a spec.
    pub fn write(&self, disk: &File) -> Result<(), DiskError> {
        let agent = self.agent.as_deref().map(agent::open).transpose().map_err(DiskError::Agent)?;
        self.fill(disk, agent).map_err(DiskError::Write)
    }

    fn fill(&self, disk: &File, agent: Option<(File, u64)>) -> io::Result<()> {
        let program = agent.as_ref().map_or(0, |(_, size)| *size);
        disk.set_len(SIZE + program.next_multiple_of(SIZE))?;
        let options = FormatVolumeOptions::new().fat_type(FatType::Fat12).volume_label(*b"CIDATA     ");
        let options = options.volume_id(self.volume);
        let options = if program == 0 { options } else { options.bytes_per_cluster(CLUSTER) };
        fatfs::format_volume(disk, options)?;
        let volume = FileSystem::new(disk, FsOptions::new())?;
        let root = volume.root_dir();
        put(&root, "meta-data", &self.meta_data)?;
        put(&root, "network-config", &self.network_config)?;
        put(&root, "user-data", self.user_data.reveal())?;
        if let Some((program, _)) = agent {
            put(&root, "vendor-data", agent::BOOTHOOK)?;
            let folder = root.create_dir(agent::FOLDER)?;
            for (name, text) in agent::FILES {
                put(&folder, name, text)?;
            }
            let mut file = folder.create_file(agent::PROGRAM)?;
            io::copy(&mut io::BufReader::with_capacity(CLUSTER as usize, program), &mut file)?;
            file.flush()?;
        }
        drop(root);
        volume.unmount()
    }
}

fn put<T: fatfs::ReadWriteSeek>(dir: &fatfs::Dir<'_, T>, name: &str, text: &str) -> io::Result<()> {
    let mut file = dir.create_file(name)?;
    file.write_all(text.as_bytes())?;
    file.flush()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Addresses by MAC, in version 2 of cloud-init's format, which netplan reads too.
fn network_config(specs: &[NicSpec], nics: &[NicLease], names: Option<(Ipv4Addr, String)>) -> Value {
    let mut ethernets = Map::new();
    for (index, nic) in nics.iter().enumerate() {
        let asks = specs.get(index).is_some_and(|spec| spec.setup == NicSetup::Dhcp);
        let mut one = json!({"match": {"macaddress": nic.mac}, "dhcp4": asks});
        let (mut addresses, mut routes) = (Vec::new(), Vec::new());
        if !asks {
            addresses.push(format!("{}/{}", nic.ipv4, nic.prefix_len));
            routes.push(json!({"to": "0.0.0.0/0", "via": nic.gateway}));
        }
        if let Some(ipv6) = nic.ipv6 {
            // Nobody here gives addresses of IPv6 or tells of routers.
            (one["dhcp6"], one["accept-ra"]) = (json!(false), json!(false));
            addresses.push(format!("{}/{}", ipv6.address, ipv6.prefix_len));
            routes.push(json!({"to": "::/0", "via": ipv6.gateway}));
        }
        if !addresses.is_empty() {
            one["addresses"] = json!(addresses);
        }
        // A guest has one default, and asks there for names.
        if index == 0 {
            if !routes.is_empty() {
                one["routes"] = json!(routes);
            }
            if let Some((server, suffix)) = names.as_ref().filter(|_| !asks) {
                one["nameservers"] = json!({"addresses": [server], "search": [suffix]});
            }
        }
        ethernets.insert(format!("net{index}"), one);
    }
    json!({"version": 2, "ethernets": ethernets})
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read as _};

    use drover_schemas::body::spec::SeedSpec;
    use drover_schemas::{InstallationId, Token, VmId};

    use super::*;

    /// The disk of a VM as bytes.
    fn image(row: &VmRow, agent: Option<&Path>) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        Seed::of(row, agent, Some(([10, 77, 0, 1].into(), "vm.example".into())))
            .unwrap()
            .write(file.as_file())
            .unwrap();
        std::fs::read(file.path()).unwrap()
    }

    fn files(image: &mut Vec<u8>) -> Vec<(String, String)> {
        let volume = FileSystem::new(Cursor::new(image), FsOptions::new()).unwrap();
        assert_eq!(volume.read_volume_label_from_root_dir().unwrap().as_deref(), Some(LABEL));
        let entries =
            volume.root_dir().iter().filter(|entry| entry.as_ref().unwrap().is_file()).map(|entry| {
                let entry = entry.unwrap();
                let mut text = String::new();
                entry.to_file().read_to_string(&mut text).unwrap();
                (entry.file_name(), text)
            });
        entries.collect()
    }

    #[test]
    fn a_guest_gets_the_agent_if_it_is_asked_for() {
        let mut row = crate::journal::tests::vm(7, "web", 1);
        row.spec.seed = Some(SeedSpec { agent: true, ..SeedSpec::default() });
        assert!(matches!(Seed::of(&row, None, None), Err(DiskError::NoAgent)));
        let file = tempfile::NamedTempFile::new().unwrap();
        let seed = Seed::of(&row, Some(Path::new("/bin/sh")), None).unwrap();
        assert!(matches!(seed.write(file.as_file()), Err(DiskError::Agent(_))));
        // A program as long as one is; it needs no interpreter.
        let mut program = vec![0x5a; 7_000_001];
        program[..64].fill(0);
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[32], program[54]) = (64, 56);
        let path = file.path();
        std::fs::write(path, &program).unwrap();
        let mut disk = image(&row, Some(path));
        assert_eq!(disk, image(&row, Some(path)));
        let texts = files(&mut disk);
        assert_eq!(
            (texts.len(), texts[3].0.as_str(), texts[3].1.as_str()),
            (4, "vendor-data", agent::BOOTHOOK)
        );
        let volume = FileSystem::new(Cursor::new(&mut disk), FsOptions::new()).unwrap();
        let folder = volume.root_dir().open_dir("agent").unwrap();
        let mut found = Vec::new();
        folder.open_file("drover-agent").unwrap().read_to_end(&mut found).unwrap();
        assert!(found == program);
        let mut install = String::new();
        folder.open_file("install").unwrap().read_to_string(&mut install).unwrap();
        // What it puts is there, by the names that it has here.
        for (name, _) in agent::FILES.iter().skip(1) {
            assert!(folder.open_file(name).is_ok() && install.contains(&format!("put {name} ")), "{name}");
        }
        // Whoever does not ask has a small disk without it.
        row.spec.seed = Some(SeedSpec::default());
        assert_eq!(image(&row, Some(path)).len() as u64, SIZE);
    }

    #[test]
    fn a_seed_disk_has_three_files_and_is_the_same_again() {
        let mut row = crate::journal::tests::vm(7, "web", 1);
        let lease = |index: usize| {
            let (owner, network) = (InstallationId::from_u128(1), Token::new("default").unwrap());
            NicLease::new(
                owner,
                row.vm_id,
                index,
                network,
                "10.77.0.0/20".parse().unwrap(),
                [10, 77, 0, 9].into(),
            )
        };
        row.nics = vec![lease(0), lease(1)];
        row.spec.seed =
            Some(SeedSpec { ssh_keys: vec!["ssh-rsa \"quoted\": key".into()], ..SeedSpec::default() });
        row.user_data = Some(Secret::new("#!/bin/sh\necho hunter2\n"));
        let mut disk = image(&row, None);
        assert_eq!((disk.len() as u64, &disk), (SIZE, &image(&row, None)));
        let files = files(&mut disk);
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
            let names = json!({"addresses": ["10.77.0.1"], "search": ["vm.example"]});
            assert_eq!(one["nameservers"], if index == 0 { names } else { Value::Null });
        }
        let asking: Vec<NicSpec> =
            row.nics.iter().map(|_| serde_json::from_value(json!({"setup": "dhcp"})).unwrap()).collect();
        let asks = network_config(&asking, &row.nics, None);
        assert_eq!(
            asks["ethernets"]["net0"],
            json!({"match": {"macaddress": row.nics[0].mac}, "dhcp4": true})
        );
        assert_eq!(files[2].1, "#!/bin/sh\necho hunter2\n");
    }

    #[test]
    fn a_guest_with_ipv6_is_told_of_both_addresses_and_both_ways() {
        let (vm_id, subnet) = (VmId::from_u128(7), "10.77.0.0/20".parse().unwrap());
        let nic = |index: usize| {
            let (owner, network) = (InstallationId::from_u128(1), Token::new("n").unwrap());
            NicLease::new(owner, vm_id, index, network, subnet, [10, 77, 0, 5 + index as u8].into())
        };
        let plain = network_config(&[], &[nic(0), nic(1)], None);
        let nics = [nic(0), nic(1)].map(|nic| nic.with_ipv6(Some("fd00:77::/64".parse().unwrap())));
        let found = network_config(&[], &nics, None);
        let (net, four) = (&found["ethernets"]["net0"], &plain["ethernets"]["net0"]);
        let ipv6 = nics[0].ipv6.unwrap();
        assert_eq!(net["addresses"], json!([four["addresses"][0], format!("{}/64", ipv6.address)]));
        assert_eq!(net["routes"], json!([four["routes"][0], {"to": "::/0", "via": "fd00:77::1"}]));
        assert_eq!((&net["dhcp6"], &net["accept-ra"]), (&json!(false), &json!(false)));
        assert_eq!(found["ethernets"]["net1"].get("routes"), None);
        // Who asks for the one is told of the other.
        let asks: NicSpec = serde_json::from_value(json!({"setup": "dhcp"})).unwrap();
        let found = network_config(&[asks.clone(), asks], &nics, None);
        let net = &found["ethernets"]["net0"];
        assert_eq!(
            (&net["dhcp4"], &net["addresses"]),
            (&json!(true), &json!([format!("{}/64", ipv6.address)]))
        );
        assert_eq!(net["routes"], json!([{"to": "::/0", "via": "fd00:77::1"}]));
    }

    #[test]
    fn the_most_that_a_spec_may_say_fits() {
        let mut row = crate::journal::tests::vm(7, "web", 1);
        let nic = row.nics.first().cloned();
        row.nics = nic.into_iter().cycle().take(8).collect();
        row.spec.seed = Some(SeedSpec { ssh_keys: vec!["\"".repeat(4096); 32], ..SeedSpec::default() });
        row.user_data = Some(Secret::new("x".repeat(16 * 1024)));
        assert_eq!(files(&mut image(&row, None))[2].1.len(), 16 * 1024);
        // And nothing is said of what is not there.
        row.user_data = None;
        row.spec.seed = Some(SeedSpec::default());
        let files = files(&mut image(&row, None));
        assert_eq!(files[2].1, "#cloud-config\n{}\n");
        assert!(!files[0].1.contains("public-keys"));
    }
}
