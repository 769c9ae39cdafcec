//! Which ids the worker gets: the ways to try, best first.

use nix::unistd::{User, getegid, geteuid};
use sandbox::id_maps::{self, IdMapError, IdMaps};

use crate::broker::BrokerError;
use crate::broker::requests::HostIds;
use crate::config::{Confinement, IdMapEntry, SandboxMode, WorkerIds};
use crate::protocol::message::{IdsInForce, Layer, LayerReport, LayerState};

/// What `--worker-ids=auto` tries first; the same as `shifted` without numbers.
const AUTO_BASE: u32 = 1 << 31;
const AUTO_COUNT: u32 = (1 << 31) - 1;

/// One way to give the worker ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPlan {
    /// Of its user namespace; `None` leaves it in the broker's.
    pub maps: Option<IdMaps>,
    /// Map the ids back on the share's mount, so that the worker's numbers are those on disk.
    pub idmapped: bool,
    /// What the worker is told.
    pub in_force: IdsInForce,
    /// For the log.
    pub description: String,
}

impl IdPlan {
    fn of_maps(maps: IdMaps, in_force: IdsInForce, description: &str) -> Self {
        Self { maps: Some(maps), idmapped: false, in_force, description: description.to_owned() }
    }

    fn shifted(base: u32, count: u32) -> Self {
        Self {
            maps: Some(IdMaps::shifted(base, count)),
            idmapped: true,
            in_force: IdsInForce::Shifted(count),
            description: format!("shifted to {base}:{count}, with an id-mapped mount of the share"),
        }
    }

    fn subids(owner: &str) -> Result<Self, IdMapError> {
        let maps = IdMaps::of_subids(owner)?;
        let count = maps.count();
        let description = format!(
            "shifted to the sub-ids of {owner} (users {}, groups {}), with an id-mapped mount of the share",
            ranges(&maps.uid),
            ranges(&maps.gid)
        );
        Ok(Self { maps: Some(maps), idmapped: true, in_force: IdsInForce::Shifted(count), description })
    }

    fn identity() -> Result<Self, IdMapError> {
        let text = "the host's own, in a user namespace";
        Ok(Self::of_maps(IdMaps::identity()?, IdsInForce::Identity, text))
    }

    /// What the worker's ids are less than ids that nobody else on the host has. (Where it has no user namespace at
    /// all, that is reported by itself.)
    pub fn shortfall(&self) -> Option<LayerReport> {
        self.maps.as_ref()?;
        let state = match self.in_force {
            IdsInForce::Shifted(_) => return None,
            IdsInForce::Mapped => LayerState::Weakened,
            IdsInForce::Identity | IdsInForce::OwnOnly => LayerState::Missing,
        };
        let reason = format!("the worker's ids are {}", self.description);
        Some(LayerReport::new(Layer::ShiftedIds, state, &reason))
    }

    /// The host's ids of the worker's, for what the broker creates on its behalf.
    pub fn host_ids(&self) -> HostIds {
        const ALL: IdMapEntry = IdMapEntry { inner: 0, outer: 0, count: u32::MAX };
        match &self.maps {
            Some(maps) => HostIds { uids: to_config(&maps.uid), gids: to_config(&maps.gid) },
            None => HostIds { uids: vec![ALL], gids: vec![ALL] },
        }
    }
}

/// FIRST:COUNT of the host, for the log; the first few.
fn ranges(lines: &[id_maps::IdMapEntry]) -> String {
    const SHOWN: usize = 4;
    let mut words: Vec<_> =
        lines.iter().take(SHOWN).map(|line| format!("{}:{}", line.outer, line.count)).collect();
    if lines.len() > SHOWN {
        words.push(format!("{} more", lines.len() - SHOWN));
    }
    words.join(" ")
}

/// The plans to try in this order; at least one. `privileged`: the caller may map any ids.
///
/// # Errors
/// When the files that tell the caller's own ids or the sub-ids can't be read or have none, or the caller may not
/// give what was asked for.
pub fn plans(confinement: &Confinement, privileged: bool) -> Result<Vec<IdPlan>, BrokerError> {
    if confinement.sandbox != SandboxMode::Namespace {
        return Ok(vec![without_namespace(privileged)]);
    }
    if !confinement.uid_map.is_empty() || !confinement.gid_map.is_empty() {
        return Ok(vec![configured(confinement, privileged)?]);
    }
    if !privileged {
        return match shifted_mode(&confinement.worker_ids) {
            Some(mode) => Err(BrokerError::ShiftedUnprivileged { mode }),
            None => Ok(unprivileged()),
        };
    }
    Ok(match &confinement.worker_ids {
        WorkerIds::Auto => vec![IdPlan::shifted(AUTO_BASE, AUTO_COUNT), IdPlan::identity()?],
        WorkerIds::Shifted { base, count } => vec![IdPlan::shifted(*base, *count)],
        WorkerIds::Subids(owner) => vec![IdPlan::subids(owner)?],
        WorkerIds::Identity => vec![IdPlan::identity()?],
    })
}

/// The mode's name, if it asks for ids that only privilege can give.
pub fn shifted_mode(ids: &WorkerIds) -> Option<&'static str> {
    match ids {
        WorkerIds::Auto | WorkerIds::Identity => None,
        WorkerIds::Shifted { .. } => Some("shifted"),
        WorkerIds::Subids(_) => Some("subids"),
    }
}

fn without_namespace(privileged: bool) -> IdPlan {
    let in_force = if privileged { IdsInForce::Identity } else { IdsInForce::OwnOnly };
    let description = "the broker's own, without a user namespace".to_owned();
    IdPlan { maps: None, idmapped: false, in_force, description }
}

/// `--uid-map` and `--gid-map`; where only one is given, the other is what it would be without.
fn configured(confinement: &Confinement, privileged: bool) -> Result<IdPlan, IdMapError> {
    let default = if privileged { IdMaps::identity()? } else { IdMaps::own() };
    let or = |lines: &[IdMapEntry], default| if lines.is_empty() { default } else { to_sandbox(lines) };
    let maps = IdMaps {
        uid: or(&confinement.uid_map, default.uid),
        gid: or(&confinement.gid_map, default.gid),
        // An ordinary user can map its own group, and no other, without help: where setgroups is denied.
        setgroups_deny: default.setgroups_deny && is_own_group(&confinement.gid_map),
    };
    Ok(IdPlan::of_maps(maps, IdsInForce::Mapped, "as --uid-map and --gid-map say"))
}

fn is_own_group(map: &[IdMapEntry]) -> bool {
    map.iter().all(|line| line.count == 1 && line.outer == getegid().as_raw())
}

fn unprivileged() -> Vec<IdPlan> {
    let mut plans = Vec::new();
    if let Ok(Some(user)) = User::from_uid(geteuid()) {
        match IdMaps::from_subid_files(&user) {
            Ok(maps) => {
                plans.push(IdPlan::of_maps(maps, IdsInForce::Mapped, "the user's own and its sub-ids"))
            }
            Err(error) => log::debug!("no sub-ids for the worker: {error}"),
        }
    }
    plans.push(IdPlan::of_maps(IdMaps::own(), IdsInForce::OwnOnly, "only the user's own"));
    plans
}

fn to_sandbox(lines: &[IdMapEntry]) -> Vec<id_maps::IdMapEntry> {
    let convert =
        |line: &IdMapEntry| id_maps::IdMapEntry { inner: line.inner, outer: line.outer, count: line.count };
    lines.iter().map(convert).collect()
}

fn to_config(lines: &[id_maps::IdMapEntry]) -> Vec<IdMapEntry> {
    let convert =
        |line: &id_maps::IdMapEntry| IdMapEntry { inner: line.inner, outer: line.outer, count: line.count };
    lines.iter().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::{LandlockMode, PrivilegedRequests, SeccompMode};

    fn confinement(sandbox: SandboxMode, worker_ids: WorkerIds) -> Confinement {
        Confinement {
            sandbox,
            seccomp: SeccompMode::Kill,
            landlock: LandlockMode::Free,
            worker_ids,
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            privileged: PrivilegedRequests::default(),
            worker_caps: BTreeSet::new(),
        }
    }

    #[test]
    fn auto_tries_shifted_and_then_identity() {
        let plans = plans(&confinement(SandboxMode::Namespace, WorkerIds::Auto), true).unwrap();
        assert_eq!("shifted".parse(), Ok(WorkerIds::Shifted { base: AUTO_BASE, count: AUTO_COUNT }));
        assert!(matches!(plans[0], IdPlan { idmapped: true, in_force: IdsInForce::Shifted(AUTO_COUNT), .. }));
        assert!(matches!(plans[1], IdPlan { idmapped: false, in_force: IdsInForce::Identity, .. }));
        assert_eq!(plans.len(), 2);
        assert_eq!(plans[0].host_ids().uid(1000), Some(AUTO_BASE + 1000));
        assert_eq!(plans[0].host_ids().uid(AUTO_COUNT), None);
    }

    #[test]
    fn what_the_user_asks_for_has_no_fall_back() {
        let shifted = WorkerIds::Shifted { base: 100_000, count: 65_536 };
        assert_eq!(plans(&confinement(SandboxMode::Namespace, shifted), true).unwrap().len(), 1);
        assert_eq!(plans(&confinement(SandboxMode::Namespace, WorkerIds::Identity), true).unwrap().len(), 1);
        let mut mapped = confinement(SandboxMode::Namespace, WorkerIds::Auto);
        mapped.uid_map = vec![IdMapEntry { inner: 0, outer: 500, count: 10 }];
        let plans = plans(&mapped, true).unwrap();
        assert_eq!(plans.len(), 1);
        assert_eq!((plans[0].host_ids().uid(3), plans[0].host_ids().gid(3)), (Some(503), Some(3)));
    }

    #[test]
    fn an_ordinary_user_cannot_ask_for_other_ids() {
        for ids in [WorkerIds::Shifted { base: 100_000, count: 1 }, WorkerIds::Subids("root".to_owned())] {
            let error = plans(&confinement(SandboxMode::Namespace, ids), false).unwrap_err();
            assert!(matches!(error, BrokerError::ShiftedUnprivileged { .. }), "{error}");
        }
    }

    #[test]
    fn the_log_names_the_first_ranges() {
        let line = |outer| id_maps::IdMapEntry { inner: 0, outer, count: 5 };
        assert_eq!(ranges(&[line(10), line(20)]), "10:5 20:5");
        let many: Vec<_> = (0..7).map(line).collect();
        assert_eq!(ranges(&many), "0:5 1:5 2:5 3:5 3 more");
    }

    #[test]
    fn without_namespaces_there_are_no_maps() {
        for mode in [SandboxMode::Chroot, SandboxMode::None] {
            let plans = plans(&confinement(mode, WorkerIds::Auto), true).unwrap();
            assert_eq!(plans.len(), 1);
            assert_eq!(plans[0].maps, None);
            assert_eq!(plans[0].host_ids().uid(7), Some(7));
        }
    }

    #[test]
    fn an_ordinary_user_has_itself_in_the_end() {
        let plans = plans(&confinement(SandboxMode::Namespace, WorkerIds::Auto), false).unwrap();
        let last = plans.last().unwrap();
        assert_eq!((last.in_force, last.idmapped), (IdsInForce::OwnOnly, false));
    }
}
