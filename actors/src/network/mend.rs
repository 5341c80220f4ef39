//! How the host's network is compared with what it should be, and mended: when the daemon starts, when others changed
//! it, and now and then.
//!
//! The rules come first. Nothing here takes anything from a guest that runs, with one exception: if rules are
//! missing and cannot be laid, its bridge goes down, for a guest that speaks freely harms others.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use drover_schemas::id::VmId;

use super::findings::{Finding, Wrong, of_links, of_rules, port};
use super::names;
use super::nft::{Member, Present};
use super::ops::{NetOps, NetworkError, VmNet};
use crate::chain::chain;

/// A VM of the journal, at start.
#[derive(Debug, Clone)]
pub struct Before {
    /// Its interfaces.
    pub net: VmNet,
    /// It ran when a daemon last looked, so its TAPs should be there.
    pub ran: bool,
}

/// Why the network is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is time to, or an interface is not as it should be.
    Look,
    /// Nobody listened for changes for a while: the rules are laid in any case.
    Unwatched,
    /// Somebody else changed our rules just now.
    Touched,
}

/// What was found wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repair {
    /// And is mended.
    pub mended: Vec<Finding>,
    /// And is still so.
    pub left: Vec<Finding>,
}

impl NetOps {
    /// Makes bridges and rules at start, and takes over the interfaces of VMs that are there, rules first.
    ///
    /// # Errors
    /// A step for the host fails; what was done before it stays and is found again.
    pub async fn restore(&self, vms: Vec<Before>) -> Result<Repair, NetworkError> {
        for network in self.known.networks().iter() {
            self.check_machine(network).await?;
        }
        let links = self.links.list().await?;
        let there: HashMap<&str, Option<&str>> =
            links.iter().map(|link| (link.name.as_str(), link.alias.as_deref())).collect();
        let is_there = |vm: &VmNet| {
            let alias = self.known.alias(vm.vm_id);
            vm.nics.iter().any(|nic| there.get(nic.tap.as_str()) == Some(&Some(alias.as_str())))
        };
        let mut any = false;
        for vm in vms.into_iter().filter(|vm| !vm.net.nics.is_empty() && (vm.ran || is_there(&vm.net))) {
            self.known.insert(vm.net);
            any = true;
        }
        let mut repair = Repair::default();
        self.mend_rules(true, &mut repair).await?;
        self.ensure_bridges().await?;
        self.mend_links(&mut repair).await?;
        self.remove_empty_bridges().await?;
        if !any {
            // The first start, or the first one on this boot: nothing was wrong, nothing was there.
            repair.mended.clear();
        }
        Ok(repair)
    }

    /// Mends what is not as it should be.
    ///
    /// # Errors
    /// The kernel cannot be asked, or the rules cannot be laid. The bridges are down then if rules are or may be missing.
    pub async fn mend(&self, why: Why) -> Result<Repair, NetworkError> {
        let anyway = why != Why::Look || self.closed.load(Ordering::Relaxed);
        let mut repair = Repair::default();
        if let Err(failure) = self.mend_rules(anyway, &mut repair).await {
            if anyway || !repair.left.is_empty() {
                self.close().await;
            }
            return Err(failure);
        }
        self.closed.store(false, Ordering::Relaxed);
        if why == Why::Touched && repair.mended.is_empty() {
            // It came between a look and the laying that followed.
            repair.mended.push(Finding::new(Wrong::RulesTouched, self.nft.table()));
        }
        self.mend_links(&mut repair).await?;
        Ok(repair)
    }

    /// No guest speaks while there are no rules.
    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        for network in self.known.networks().iter() {
            let further =
                self.known.further_of(&network.def.name).into_iter().map(|number| network.bridge_of(number));
            let mut closed = self.links.set_down(&network.bridge).await;
            for bridge in further {
                closed = closed.and(self.links.set_down(&bridge).await);
            }
            match closed {
                Ok(()) => {
                    tracing::error!(network = %network.def.name, "no rules can be laid: the network is closed");
                }
                Err(failure) => tracing::error!(error = %chain(&failure), "a network cannot be closed"),
            }
        }
    }

    /// Compares the rules, and lays them where they differ, or in any case if `anyway`. What is wrong is `left` in
    /// `repair` until it is mended.
    async fn mend_rules(&self, anyway: bool, repair: &mut Repair) -> Result<(), NetworkError> {
        let present = self.nft.read().await?;
        let laid = self.laid().clone();
        let found = of_rules(&self.known, self.nft.table(), present.as_ref(), laid.as_deref());
        if found.is_empty() && !anyway {
            return Ok(());
        }
        repair.left.extend(found);
        let foreign = present.as_ref().map(|present| self.foreign(present)).unwrap_or_default();
        let refused = self.lay(&foreign).await?;
        // Should others have changed them since, the kernel tells of it, and they are laid again.
        *self.laid() = self.nft.read().await?.map(|present| present.fixed);
        repair.mended.append(&mut repair.left);
        repair.left.extend(refused);
        Ok(())
    }

    /// Lays all rules, whatever is there.
    ///
    /// # Errors
    /// They cannot be laid.
    pub(super) async fn lay_anew(&self) -> Result<(), NetworkError> {
        self.mend_rules(true, &mut Repair::default()).await
    }

    fn laid(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.laid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Elements of TAPs that we know, and forwards, which nobody of us made.
    fn foreign(&self, present: &Present) -> Vec<Member> {
        let ours: HashSet<Member> = self.known_members().into_iter().collect();
        let of_known = |member: &&Member| {
            member.tap().is_none_or(|tap| self.known.owner(tap).is_some()) && !ours.contains(*member)
        };
        present.members.iter().filter(of_known).cloned().collect()
    }

    /// All rules in one transaction. One VM whose rules are refused does not take those of the others along.
    async fn lay(&self, foreign: &[Member]) -> Result<Vec<Finding>, NetworkError> {
        let base = self.base();
        let Err(failure) = self.nft.lay(&base, &self.known_members(), foreign).await else {
            return Ok(Vec::new());
        };
        tracing::warn!(error = %chain(&failure), "the rules are not taken together; each VM's are laid alone");
        self.nft.lay(&base, &[], &[]).await?;
        let mut refused = Vec::new();
        for vm in self.known.vms() {
            if let Err(failure) = self.nft.change(&vm.members(), &[]).await {
                tracing::error!(vm_id = %vm.vm_id, error = %chain(&failure), "the rules of a VM are refused");
                let of = |tap: String| Finding::of_vm(Wrong::ElementsRefused, tap, vm.vm_id);
                refused.extend(vm.nics.iter().map(|nic| of(port(nic).tap)));
            }
        }
        Ok(refused)
    }

    async fn mend_links(&self, repair: &mut Repair) -> Result<(), NetworkError> {
        let (links, addresses) = (self.links.list().await?, self.links.addresses().await?);
        let found = of_links(&self.known, &links, &addresses);
        if found.iter().any(|finding| finding.vm_id.is_none()) {
            self.ensure_bridges().await?;
        }
        for finding in found {
            match self.mend_one(&finding).await {
                Ok(true) => repair.mended.push(finding),
                Ok(false) => repair.left.push(finding),
                Err(failure) => {
                    let said = format!("{finding}, and it cannot be mended: {}", chain(&failure));
                    repair.left.push(Finding::new(Wrong::NotMended, said));
                }
            }
        }
        if self.ensure_forwarding()? {
            repair.mended.push(Finding::new(Wrong::ForwardingOff, names::table(self.known.installation)));
        }
        Ok(())
    }

    /// Whether it is mended.
    async fn mend_one(&self, finding: &Finding) -> Result<bool, NetworkError> {
        match (finding.wrong, finding.vm_id) {
            // A VMM that held it has nothing in its hands any more.
            (Wrong::TapGone, _) => Ok(false),
            (_, Some(vm_id)) => self.mend_port(vm_id, &finding.of).await.map(|()| true),
            // A bridge: mended before.
            (_, None) => Ok(true),
        }
    }

    async fn mend_port(&self, vm_id: VmId, tap: &str) -> Result<(), NetworkError> {
        let nics = self.known.vm(vm_id).into_iter().flat_map(|vm| vm.nics);
        for nic in nics.filter(|nic| nic.tap == tap) {
            self.ensure_port(vm_id, &nic).await?;
        }
        Ok(())
    }
}
