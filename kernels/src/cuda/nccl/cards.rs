//! What ranks tell each other before they join: which NCCL and which GPU each has, and the id under which they meet.

use super::library::{Calls, SEVERAL_ON_ONE_GPU, UniqueId, dotted, version};
use crate::collective::Transport;
use crate::{Error, Result};

/// Lets NCCL put several ranks on one GPU, from 2.30 on.
const SEVERAL: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Whether several ranks may have one GPU: NCCL can, and the environment tells it to.
///
/// # Errors
/// As [`version`].
pub fn takes_several_on_one_gpu() -> Result<bool> {
    Ok(takes_several(version()?))
}

fn takes_several(version: i32) -> bool {
    version >= SEVERAL_ON_ONE_GPU && std::env::var(SEVERAL).is_ok_and(|value| value == "1")
}

/// What ranks tell each other before they join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Card {
    /// Of NCCL; 0 where there is none.
    pub version: i32,
    /// The GPU's own number.
    pub gpu: [u8; 16],
}

impl Card {
    const BYTES: usize = 20;

    pub fn exchange(self, hosts: &mut dyn Transport) -> Result<Vec<Self>> {
        let (rank, world) = (hosts.rank(), hosts.world());
        let mut bytes = vec![0; Self::BYTES * world];
        let own = &mut bytes[rank * Self::BYTES..][..Self::BYTES];
        own[..4].copy_from_slice(&self.version.to_ne_bytes());
        own[4..].copy_from_slice(&self.gpu);
        let parts: Vec<_> = (0..world).map(|r| r * Self::BYTES..(r + 1) * Self::BYTES).collect();
        hosts.all_gather(&mut bytes, &parts)?;
        let read = |bytes: &[u8; Self::BYTES]| {
            let (version, gpu) = bytes.split_at(4);
            let mut card = Self { version: 0, gpu: [0; 16] };
            card.version = i32::from_ne_bytes([version[0], version[1], version[2], version[3]]);
            card.gpu.copy_from_slice(gpu);
            card
        };
        Ok(bytes.as_chunks().0.iter().map(read).collect())
    }
}

/// Whether ranks with these cards can join.
pub(super) fn agree(cards: &[Card]) -> Result<()> {
    if let Some(rank) = cards.iter().position(|card| card.version == 0) {
        return Err(Error::Ranks(format!("rank {rank} has no NCCL that can be used; see its message")));
    }
    let version = cards[0].version;
    if let Some(rank) = cards.iter().position(|card| card.version != version) {
        return Err(Error::Ranks(format!(
            "rank {rank} has NCCL {}, rank 0 has {}: install the same version on all machines",
            dotted(cards[rank].version),
            dotted(version)
        )));
    }
    let twice = (0..cards.len()).find_map(|b| Some(((0..b).find(|&a| cards[a].gpu == cards[b].gpu)?, b)));
    if let Some((a, b)) = twice
        && !takes_several(version)
    {
        return Err(Error::Ranks(format!(
            "ranks {a} and {b} have the same GPU: start as many as there are GPUs (NCCL {} takes several on one GPU from {} on, \
             with {SEVERAL}=1)",
            dotted(version),
            dotted(SEVERAL_ON_ONE_GPU)
        )));
    }
    Ok(())
}

/// NCCL's id of rank 0, on all ranks.
pub(super) fn exchange_id(calls: &Calls, hosts: &mut dyn Transport) -> Result<UniqueId> {
    let mut id = UniqueId([0; 128]);
    let mut made = Ok(());
    if hosts.rank() == 0 {
        // SAFETY: `id` lives through the call
        made = calls.check("cannot make an id for the ranks", unsafe { (calls.get_unique_id)(&mut id) });
    }
    let mut parts = vec![id.0.len()..id.0.len(); hosts.world()];
    parts[0] = 0..id.0.len();
    hosts.all_gather(&mut id.0, &parts)?;
    made?;
    match id.0.iter().all(|&byte| byte == 0) {
        true => Err(Error::Ranks("rank 0 could not make NCCL's id; see its message".into())),
        false => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(version: i32, gpu: u8) -> Card {
        Card { version, gpu: [gpu; 16] }
    }

    #[test]
    fn ranks_that_cannot_join_are_told_why() {
        assert!(agree(&[card(22_807, 1), card(22_807, 2)]).is_ok());
        let said = |cards: &[Card]| agree(cards).unwrap_err().to_string();
        assert!(said(&[card(22_807, 1), card(0, 2)]).contains("rank 1 has no NCCL"));
        let versions = said(&[card(22_807, 1), card(22_807, 2), card(23_007, 3)]);
        assert!(versions.contains("rank 2 has NCCL 2.30.7, rank 0 has 2.28.7"), "{versions}");
        let twice = said(&[card(22_807, 1), card(22_807, 2), card(22_807, 1)]);
        assert!(twice.contains("ranks 0 and 2 have the same GPU") && twice.contains(SEVERAL), "{twice}");
    }
}
