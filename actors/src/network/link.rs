//! Bridges, ports and addresses over rtnetlink, in the namespace of the thread that connects.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec};

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

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn list(&self) -> Result<Vec<LinkInfo>, LinkError> {
        let all = self.handle.link().get().execute();
        all.map_ok(info).try_collect().await.map_err(|source| step("list", "*", source))
    }

    /// Makes the bridge `name` with its alias and gateway address, and sets it up. One that is there is
    /// brought into this state, unless its alias shows another owner.
    ///
    /// # Errors
    /// The kernel refuses, or the interface is somebody else's.
    pub async fn ensure_bridge(
        &self,
        name: &str,
        alias: &str,
        gateway: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), LinkError> {
        if self.get(name).await?.is_none() {
            let message = LinkBridge::new(name).build();
            match self.handle.link().add(message).execute().await {
                Err(error) if errno(&error) != Some(libc::EEXIST) => {
                    return Err(step("create bridge", name, error));
                }
                _ => {}
            }
        }
        let link = self.must_get(name).await?;
        match link.alias.as_deref() {
            Some(found) if found == alias => {}
            None | Some("") => self.set_alias(&link, alias).await?,
            Some(other) => {
                return Err(LinkError::NotOurs { name: name.to_owned(), alias: Some(other.to_owned()) });
            }
        }
        self.ensure_address(&link, gateway, prefix_len).await?;
        self.set_up(&link).await
    }

    async fn ensure_address(
        &self,
        link: &LinkInfo,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), LinkError> {
        let address = IpAddr::V4(address);
        let found = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_any(|message| {
                let same = message.header.prefix_len == prefix_len
                    && message.attributes.iter().any(
                        |attribute| matches!(attribute, AddressAttribute::Local(local) if *local == address),
                    );
                std::future::ready(same)
            })
            .await
            .map_err(|source| step("list the addresses of", &link.name, source))?;
        if found {
            return Ok(());
        }
        let add = self.handle.address().add(link.index, address, prefix_len);
        match add.execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                Err(step("add the address of", &link.name, error))
            }
            _ => Ok(()),
        }
    }

    /// Puts the TAP `name` under `bridge`: alias, port flags, up. `isolated` ports reach the bridge itself
    /// only, not each other.
    ///
    /// # Errors
    /// The kernel refuses; an interface is missing or somebody else's.
    pub async fn ensure_port(
        &self,
        name: &str,
        alias: &str,
        bridge: &str,
        isolated: bool,
    ) -> Result<(), LinkError> {
        let bridge = self.must_get(bridge).await?;
        let link = self.must_get(name).await?;
        match link.alias.as_deref() {
            Some(found) if found == alias => {}
            None | Some("") => self.set_alias(&link, alias).await?,
            Some(other) => {
                return Err(LinkError::NotOurs { name: name.to_owned(), alias: Some(other.to_owned()) });
            }
        }
        if link.controller != Some(bridge.index) {
            self.change(&link, "enslave", |message| message.controller(bridge.index)).await?;
        }
        let port = LinkBridgePort::new(link.index).isolated(isolated).build();
        self.handle
            .link()
            .set_port(port)
            .execute()
            .await
            .map_err(|source| step("set the port flags of", name, source))?;
        self.set_up(&link).await
    }

    async fn set_alias(&self, link: &LinkInfo, alias: &str) -> Result<(), LinkError> {
        self.change(link, "mark", |message| message.alias(alias)).await
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
        match self.handle.link().del(link.index).execute().await {
            Err(error) if errno(&error) != Some(libc::ENODEV) => Err(step("remove", name, error)),
            _ => Ok(()),
        }
    }

    /// Whether the address of a route of this namespace lies in `subnet` on another interface than `bridge`:
    /// then guests and that network would be taken for each other.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn conflict(&self, subnet: Ipv4Net, bridge: &str) -> Result<Option<String>, LinkError> {
        let own = self.get(bridge).await?.map(|link| link.index);
        let mut addresses = self.handle.address().get().execute();
        let failed = |source| step("list the addresses of", "*", source);
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            if Some(message.header.index) == own {
                continue;
            }
            for attribute in &message.attributes {
                if let AddressAttribute::Address(IpAddr::V4(address)) = attribute
                    && subnet.contains(address)
                {
                    return Ok(Some(format!("{address}/{}", message.header.prefix_len)));
                }
            }
        }
        Ok(None)
    }
}

fn info(message: LinkMessage) -> LinkInfo {
    let mut link = LinkInfo {
        index: message.header.index,
        name: String::new(),
        alias: None,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(index) => link.controller = Some(index).filter(|&index| index != 0),
            _ => {}
        }
    }
    link
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
