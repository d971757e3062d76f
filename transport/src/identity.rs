//! What this process says of itself at the start of each connection.

use std::sync::Arc;

use milonga_protocol::frame::WIRE_VERSION;
use milonga_protocol::messages::Handshake;
use milonga_protocol::sync::OnceLock;
use milonga_protocol::{ClusterId, Incarnation, ServerName};

/// Name, run and cluster of this process; shared by everything in it that dials or listens.
#[derive(Debug)]
pub struct Identity {
    name: ServerName,
    incarnation: Incarnation,
    cluster: OnceLock<ClusterId>,
}

/// This process already belongs to another cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process belongs to cluster {mine}, not to {other}")]
pub struct OtherCluster {
    /// The cluster it belongs to.
    pub mine: ClusterId,
    /// The one it was told.
    pub other: ClusterId,
}

impl Identity {
    /// A process that does not know its cluster yet.
    #[must_use]
    pub fn new(name: ServerName, incarnation: Incarnation) -> Arc<Self> {
        Arc::new(Self {
            name,
            incarnation,
            cluster: OnceLock::new(),
        })
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &ServerName {
        &self.name
    }

    /// Its run.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Its cluster, once known.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster.get().copied()
    }

    /// Learns the cluster; it never changes afterwards. Connections made from now on say and check it, and
    /// those of another cluster that were made before are closed when they next carry something.
    ///
    /// # Errors
    /// [`OtherCluster`] if it is known and differs.
    pub fn set_cluster(&self, cluster: ClusterId) -> Result<(), OtherCluster> {
        let mine = *self.cluster.get_or_init(|| cluster);
        if mine == cluster {
            Ok(())
        } else {
            Err(OtherCluster {
                mine,
                other: cluster,
            })
        }
    }

    pub(crate) fn handshake(&self) -> Handshake {
        Handshake {
            version: WIRE_VERSION,
            cluster: self.cluster(),
            name: self.name.clone(),
            incarnation: self.incarnation,
        }
    }

    /// Whether a peer that said `theirs` may talk to this process; why not, for both sides to read.
    pub(crate) fn check(&self, theirs: &Handshake) -> Result<(), String> {
        if theirs.version != WIRE_VERSION {
            return Err(format!(
                "{} speaks wire version {WIRE_VERSION} and {} speaks {}; run the same version everywhere",
                self.name, theirs.name, theirs.version
            ));
        }
        self.check_cluster(&theirs.name, theirs.cluster)
    }

    pub(crate) fn check_cluster(
        &self,
        name: &ServerName,
        theirs: Option<ClusterId>,
    ) -> Result<(), String> {
        match (self.cluster(), theirs) {
            (Some(mine), Some(theirs)) if mine != theirs => Err(format!(
                "{} belongs to cluster {mine} and {name} to cluster {theirs}; check the addresses and \
                 data directories in the configuration",
                self.name
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cluster: Option<u128>) -> Arc<Identity> {
        let identity = Identity::new("unit-1a".into(), Incarnation(1));
        if let Some(cluster) = cluster {
            identity.set_cluster(ClusterId(cluster)).expect("unset");
        }
        identity
    }

    #[test]
    fn two_known_clusters_must_be_equal() {
        let check = |a, b| identity(a).check(&identity(b).handshake());
        assert_eq!(check(None, None), Ok(()));
        assert_eq!(check(Some(1), None), Ok(()));
        assert_eq!(check(None, Some(1)), Ok(()));
        assert_eq!(check(Some(1), Some(1)), Ok(()));
        let why = check(Some(1), Some(2)).expect_err("other clusters");
        assert!(why.contains("cluster 0"), "{why}");
    }

    #[test]
    fn versions_must_be_equal() {
        let mut theirs = identity(None).handshake();
        theirs.version += 1;
        let why = identity(None).check(&theirs).expect_err("other version");
        assert!(why.contains("the same version"), "{why}");
    }

    #[test]
    fn a_cluster_never_changes() {
        let identity = identity(Some(1));
        assert_eq!(identity.set_cluster(ClusterId(1)), Ok(()));
        let error = identity.set_cluster(ClusterId(2)).expect_err("other");
        assert_eq!(error.mine, ClusterId(1));
        assert_eq!(identity.cluster(), Some(ClusterId(1)));
    }
}
