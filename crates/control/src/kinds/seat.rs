//! Seats: the range of uids a sandbox runs in, chosen once so that the hands never choose.

use model::{
    fault::{Code, Fault},
    limits,
};

use crate::{
    ops::{Change, Txn},
    world::World,
};

/// First uid of the first range: above those of containers.
pub const UID_FIRST: u32 = 15_259 * limits::SANDBOX_UIDS;
const UID_END: u32 = limits::SANDBOX_UID_END;

/// A range that no seat has. The next one above all others is preferred, so that a range just left rests.
pub fn free_uid_base(world: &World, txn: &Txn) -> Result<u32, Fault> {
    let pending = txn.changes().iter().filter_map(|change| match change {
        Change::Seat(seat) => Some(seat.uid_base),
        _ => None,
    });
    let pending: std::collections::BTreeSet<u32> = pending.collect();
    let taken = world.seats.uid_bases();
    let last = taken.last().max(pending.last());
    let above = last.map_or(UID_FIRST, |last| last.saturating_add(limits::SANDBOX_UIDS));
    if (UID_FIRST..UID_END).contains(&above) {
        return Ok(above);
    }
    let mut ranges = (UID_FIRST..UID_END).step_by(usize::try_from(limits::SANDBOX_UIDS).expect("65536 fits"));
    ranges.find(|base| !taken.contains(base) && !pending.contains(base)).ok_or_else(|| {
        let text = "This machine has no room for another sandbox: every range of uids is in use.";
        Fault::new(Code::ResourceExhausted, "quotaExceeded", text)
    })
}
