//! Bridges, ports and addresses over rtnetlink, in the namespace of the thread that connects.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoPortData, LinkAttribute, LinkFlags, LinkInfo as InfoOf, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};

/// A step with an interface failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel cannot be reached.
    #[error("cannot connect to rtnetlink")]
    Connect(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {step} interface {name}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// The bridge has as many ports as it can.
    #[error(
        "bridge {bridge} has all of its 1,023 ports; take away what others put under it, or use another network or host"
    )]
    Full {
        /// The bridge.
        bridge: String,
    },
    /// There is no such interface.
    #[error("there is no interface {name}")]
    Missing {
        /// The interface.
        name: String,
    },
    /// An interface of that name belongs to someone else.
    #[error("interface {name} is not ours: its alias is {alias:?}")]
    NotOurs {
        /// The interface.
        name: String,
        /// Its alias.
        alias: Option<String>,
    },
}

/// An interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias, which carries our mark.
    pub alias: Option<String>,
    /// Number of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// It is up.
    pub up: bool,
    /// Something is attached at the other end.
    pub carrier: bool,
    /// Its MAC.
    pub mac: Vec<u8>,
    /// The group of interfaces that it is in.
    pub group: u32,
    /// As a port of a bridge it reaches the bridge only, not the other ports.
    pub isolated: bool,
    /// The longest packet that passes it.
    pub mtu: u32,
}

/// What passed an interface in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    /// Bytes.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
    /// Frames that did not pass.
    pub dropped: u64,
}

/// What passed an interface, as the host sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// What came from it.
    pub rx: Way,
    /// What went to it.
    pub tx: Way,
}

/// What a bridge should be.
#[derive(Debug, Clone, Copy)]
pub struct BridgeShape<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its alias.
    pub alias: &'a str,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The longest packet that passes it.
    pub mtu: u32,
    /// What the host is to it.
    pub host: Host,
}

/// What the host is to a bridge.
#[derive(Debug, Clone, Copy)]
pub enum Host {
    /// It has this address, the gateway of its network.
    Gateway(Ipv4Net),
    /// Nothing: it has no address there and answers nobody. The bridge is in this group of interfaces.
    Nobody(u32),
}

/// What a TAP under a bridge should be.
#[derive(Debug, Clone, Copy)]
pub struct PortShape<'a> {
    /// Its alias.
    pub alias: &'a str,
    /// Name of the bridge.
    pub bridge: &'a str,
    /// Its group of interfaces.
    pub group: u32,
    /// It reaches the bridge itself only, not the other ports.
    pub isolated: bool,
    /// The longest packet that passes it, which a VMM tells its guest.
    pub mtu: u32,
}

/// A connection to rtnetlink; its task ends with the last clone.
#[derive(Debug, Clone)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Connects, within a tokio runtime.
    ///
    /// # Errors
    /// No netlink socket can be made.
    pub fn connect() -> Result<Self, LinkError> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(LinkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The interface of that name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn get(&self, name: &str) -> Result<Option<LinkInfo>, LinkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(info)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(source) => Err(step("look up", name, source)),
        }
    }

    async fn must_get(&self, name: &str) -> Result<LinkInfo, LinkError> {
        self.get(name).await?.ok_or_else(|| LinkError::Missing { name: name.to_owned() })
    }

    /// What the kernel counted at each interface of the namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn traffic(&self) -> Result<HashMap<String, Traffic>, LinkError> {
        let mut all = self.handle.link().get().execute();
        let mut found = HashMap::new();
        while let Some(message) = all.try_next().await.map_err(|source| step("count at", "*", source))? {
            found.extend(traffic(message.attributes));
        }
        Ok(found)
    }

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn list(&self) -> Result<Vec<LinkInfo>, LinkError> {
        let all = self.handle.link().get().execute();
        all.map_ok(info).try_collect().await.map_err(|source| step("list", "*", source))
    }

    /// Makes a bridge and sets it up; gives its number. One that is there is brought into this state, unless its
    /// alias shows another owner.
    ///
    /// # Errors
    /// The kernel refuses, or the interface is somebody else's.
    pub async fn ensure_bridge(&self, shape: &BridgeShape<'_>) -> Result<u32, LinkError> {
        let &BridgeShape { name, alias, mac, mtu, host } = shape;
        if self.get(name).await?.is_none() {
            self.add(name, "create bridge", LinkBridge::new(name).address(mac.to_vec()).build()).await?;
        }
        let link = self.must_get(name).await?;
        let group = match host {
            Host::Gateway(_) => link.group,
            Host::Nobody(group) => group,
        };
        if !is_marked(&link, alias)? || link.group != group {
            self.change(&link, "mark", |message| message.alias(alias).link_group(group)).await?;
        }
        if link.mac != mac {
            self.change(&link, "set the MAC of", |message| message.address(mac.to_vec())).await?;
        }
        self.ensure_mtu(&link, mtu).await?;
        match host {
            Host::Gateway(address) => self.ensure_address(&link, address.into()).await?,
            Host::Nobody(_) => self.change(&link, "silence", |message| message.arp(false)).await?,
        }
        self.set_up(&link).await?;
        Ok(link.index)
    }

    /// Makes a pair of interfaces with what goes in at one coming out at the other, unless it is there.
    ///
    /// # Errors
    /// The kernel refuses, or one of them is somebody else's.
    pub async fn ensure_pair(&self, [upper, lower]: [&str; 2], alias: &str) -> Result<(), LinkError> {
        let (found, other) = (self.get(upper).await?, self.get(lower).await?);
        if found.is_some() && other.is_some() {
            return Ok(());
        }
        // One without the other joins nothing.
        for link in [found, other].into_iter().flatten() {
            is_marked(&link, alias)?;
            self.remove(&link).await?;
        }
        self.add(upper, "create", LinkVeth::new(upper, lower).build()).await
    }

    /// Adds an interface; somebody may have been faster.
    async fn add(&self, name: &str, what: &'static str, message: LinkMessage) -> Result<(), LinkError> {
        match self.handle.link().add(message).execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => Err(step(what, name, error)),
            _ => Ok(()),
        }
    }

    async fn remove(&self, link: &LinkInfo) -> Result<(), LinkError> {
        match self.handle.link().del(link.index).execute().await {
            Err(error) if errno(&error) != Some(libc::ENODEV) => Err(step("remove", &link.name, error)),
            _ => Ok(()),
        }
    }

    async fn ensure_mtu(&self, link: &LinkInfo, mtu: u32) -> Result<(), LinkError> {
        if link.mtu == mtu {
            return Ok(());
        }
        self.change(link, "set the MTU of", |message| message.mtu(mtu)).await
    }

    /// Gives the bridge `name`, which is up, its addresses of IPv6. They may be used at once: nobody else may have them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn ensure_ipv6(&self, name: &str, addresses: &[Ipv6Net]) -> Result<(), LinkError> {
        let link = self.must_get(name).await?;
        for address in addresses {
            self.ensure_address(&link, IpNet::V6(*address)).await?;
        }
        Ok(())
    }

    async fn ensure_address(&self, link: &LinkInfo, address: IpNet) -> Result<(), LinkError> {
        if self.addresses().await?.contains(&(link.index, address)) {
            return Ok(());
        }
        let mut add = self.handle.address().add(link.index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        match add.execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                Err(step("add the address of", &link.name, error))
            }
            _ => Ok(()),
        }
    }

    /// Puts the TAP `name` under its bridge: alias, group, port flags, up. Traffic of one that is right goes on.
    ///
    /// # Errors
    /// The kernel refuses; an interface is missing or somebody else's.
    pub async fn ensure_port(&self, name: &str, shape: PortShape<'_>) -> Result<(), LinkError> {
        let bridge = self.must_get(shape.bridge).await?;
        let link = self.must_get(name).await?;
        if !is_marked(&link, shape.alias)? || link.group != shape.group {
            let mark =
                |message: LinkMessageBuilder<LinkUnspec>| message.alias(shape.alias).link_group(shape.group);
            self.change(&link, "mark", mark).await?;
        }
        self.ensure_mtu(&link, shape.mtu).await?;
        if link.controller != Some(bridge.index) {
            match self.change(&link, "enslave", |message| message.controller(bridge.index)).await {
                Err(LinkError::Step { source, .. }) if errno(&source) == Some(libc::EXFULL) => {
                    return Err(LinkError::Full { bridge: bridge.name });
                }
                other => other?,
            }
        }
        let port = LinkBridgePort::new(link.index).isolated(shape.isolated).build();
        self.handle
            .link()
            .set_port(port)
            .execute()
            .await
            .map_err(|source| step("set the port flags of", name, source))?;
        self.set_up(&link).await
    }

    async fn set_up(&self, link: &LinkInfo) -> Result<(), LinkError> {
        if link.up {
            return Ok(());
        }
        self.change(link, "set up", LinkMessageBuilder::up).await
    }

    async fn change<F>(&self, link: &LinkInfo, what: &'static str, change: F) -> Result<(), LinkError>
    where
        F: FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    {
        let message = change(LinkUnspec::new_with_index(link.index)).build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(|source| step(what, &link.name, source))
    }

    /// Takes the interface `name` down, and with it all that passes it; one that is not there passes nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn set_down(&self, name: &str) -> Result<(), LinkError> {
        match self.get(name).await? {
            Some(link) if link.up => self.change(&link, "set down", LinkMessageBuilder::down).await,
            _ => Ok(()),
        }
    }

    /// Every address of the namespace with the number of its interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, LinkError> {
        let mut found = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        let failed = |source| step("list the addresses of", "*", source);
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            let net = local(&message).and_then(|address| IpNet::new(address, message.header.prefix_len).ok());
            found.extend(net.map(|net| (message.header.index, net)));
        }
        Ok(found)
    }

    /// Removes the interface `name` if its alias is `alias`; one that is not there is removed already.
    ///
    /// # Errors
    /// The kernel refuses, or the interface is somebody else's.
    pub async fn delete(&self, name: &str, alias: &str) -> Result<(), LinkError> {
        let Some(link) = self.get(name).await? else {
            return Ok(());
        };
        if link.alias.as_deref() != Some(alias) {
            return Err(LinkError::NotOurs { name: name.to_owned(), alias: link.alias });
        }
        self.remove(&link).await
    }

    /// Whether an address of this namespace lies in `subnet` on another interface than `bridge`: then guests and
    /// that network would be taken for each other.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn conflict(&self, subnet: IpNet, bridge: &str) -> Result<Option<String>, LinkError> {
        let own = self.get(bridge).await?.map(|link| link.index);
        let all = self.addresses().await?.into_iter();
        let mut others = all.filter(|(index, net)| Some(*index) != own && subnet.contains(&net.addr()));
        Ok(others.next().map(|(_, net)| net.to_string()))
    }
}

/// Whether an interface carries our mark; one that carries another is somebody else's.
fn is_marked(link: &LinkInfo, alias: &str) -> Result<bool, LinkError> {
    match link.alias.as_deref() {
        Some(found) if found == alias => Ok(true),
        None | Some("") => Ok(false),
        Some(_) => Err(LinkError::NotOurs { name: link.name.clone(), alias: link.alias.clone() }),
    }
}

/// The address that a message is about: an interface's own.
#[must_use]
pub fn local(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        // Of IPv6 only one that has another at its far end is told in that way.
        AddressAttribute::Address(address @ IpAddr::V6(_)) => Some(*address),
        _ => None,
    })
}

/// Reads what the kernel says of an interface.
#[must_use]
pub fn info(message: LinkMessage) -> LinkInfo {
    let mut link = LinkInfo {
        index: message.header.index,
        name: String::new(),
        alias: None,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        mac: Vec::new(),
        group: 0,
        isolated: false,
        mtu: 0,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(index) => link.controller = Some(index).filter(|&index| index != 0),
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::LinkInfo(kind) => link.isolated = is_isolated(&kind),
            _ => {}
        }
    }
    link
}

/// Name and counters of an interface.
fn traffic(attributes: Vec<LinkAttribute>) -> Option<(String, Traffic)> {
    let (mut name, mut counted) = (None, None);
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found),
            LinkAttribute::Stats64(of) => {
                let rx = Way { bytes: of.rx_bytes, packets: of.rx_packets, dropped: of.rx_dropped };
                let tx = Way { bytes: of.tx_bytes, packets: of.tx_packets, dropped: of.tx_dropped };
                counted = Some(Traffic { rx, tx });
            }
            _ => {}
        }
    }
    name.zip(counted)
}

fn is_isolated(kind: &[InfoOf]) -> bool {
    kind.iter().any(|part| match part {
        InfoOf::PortData(InfoPortData::BridgePort(flags)) => {
            flags.iter().any(|flag| matches!(flag, InfoBridgePort::Isolated(true)))
        }
        _ => false,
    })
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

fn step(step: &'static str, name: &str, source: rtnetlink::Error) -> LinkError {
    LinkError::Step { step, name: name.to_owned(), source }
}
