//! Data directories that nobody needs any more: of versions that were replaced, of changes that failed, of
//! data that a snapshot holds instead.

use std::rc::Rc;

use claw_core::data::DataGeneration;
use claw_core::plan::{DesiredInstance, Plan, Step, Wait};
use claw_core::report::Phase;

use super::super::{InstanceLoop, Next, Worked};
use crate::machine::Machine;

impl<M: Machine> InstanceLoop<M> {
    /// Directories that may go now.
    pub(in super::super) fn droppable(&self, wanted: &DesiredInstance) -> Option<Plan> {
        let record = &self.remembered.record;
        if record.cutover.is_some() {
            return None;
        }
        let due = record.replaced.filter(|replaced| {
            let held = self.agent.roster.held(&wanted.name);
            self.now() >= replaced.until && held.holds_replaced(replaced.since)
        });
        let data = record.doomed.iter().copied().chain(due.map(|replaced| replaced.data)).next()?;
        let step = Step::DropData { data };
        let stages = vec![vec![step]];
        Some(Plan { stages, wait: Wait::Nothing, phase: Phase::Applying, message: String::new() })
    }

    /// Deletes a directory that nobody needs.
    pub(in super::super) async fn drop_data(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        plan: &Plan,
    ) -> Next {
        let dropped: Vec<DataGeneration> = plan
            .stages
            .iter()
            .flatten()
            .filter_map(|step| match step {
                Step::DropData { data } => Some(*data),
                _ => None,
            })
            .collect();
        match self.work(wanted, wanted, plan).await {
            Ok(Worked::Done) => {}
            // It may be there in part, and is removed another time.
            Ok(Worked::Superseded | Worked::Forgotten) => return Next::Again,
            Err(failure) => return self.failure(wanted, &failure),
        }
        let record = &mut self.remembered.record;
        record.doomed.retain(|data| !dropped.contains(data));
        record.replaced = record.replaced.filter(|replaced| !dropped.contains(&replaced.data));
        self.persist(wanted).await
    }
}
