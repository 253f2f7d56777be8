//! The data of a run, and when it is verified.

use super::run::Run;
use super::{Observer, Options};
use crate::Result;
use crate::config::Config;
use crate::data::shards::{Dataset, SplitName, Verification};
use crate::dist::{Control, Group};
use kernels::Backend;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most bytes of data that are verified before anything else, which takes some hundredths of a second. Never in tests.
const AT_ONCE: Option<u64> = if cfg!(test) { None } else { Some(64 << 20) };
/// A wait that is longer is spoken of.
const NOTICED: Duration = Duration::from_secs(1);

/// Both splits, and what is left to verify of them.
pub struct Data {
    pub train: Arc<Dataset>,
    /// None where no text is held out.
    pub eval: Option<Arc<Dataset>>,
    pub verification: Verification,
}

impl Data {
    /// Opens both splits. What is more than little is verified from now on, by the processes of this machine together.
    pub fn open<B: Backend>(group: &Group<B>, config: &Config) -> Result<Self> {
        let open = |split| Dataset::open(&config.data.dir, split).map(Arc::new);
        let (train, eval) = (open(SplitName::Train)?, open(SplitName::Eval)?);
        let mut later = Vec::new();
        if AT_ONCE.is_some_and(|most| train.bytes().saturating_add(eval.bytes()) <= most) {
            train.verify(&|_| ())?;
            eval.verify(&|_| ())?;
        } else {
            // Held-out text first: it is little, and each evaluation reads all of it.
            later.extend([eval.clone(), train.clone()]);
        }
        let part = group.control.as_ref().map_or((0, 1), |c| (c.local_rank(), c.local_world()));
        let verification = Verification::start(later, part)?;
        Ok(Self { train, eval: Some(eval).filter(|eval| !eval.is_empty()), verification })
    }
}

impl<B: Backend<Acc = f32>> Run<'_, B> {
    /// Waits until all processes have verified all data: nothing is left behind as finished before. False if a signal came
    /// first.
    pub(super) fn verified(&mut self, options: &Options<'_>, observer: &mut dyn Observer) -> Result<bool> {
        if self.verified {
            return Ok(true);
        }
        let Self { group, setup, artifacts, .. } = self;
        let (begun, mut said) = (Instant::now(), false);
        let busy = group.control.as_ref().map(Control::busy);
        let mut done = setup.verification.is_done()?;
        while !done && group.signal(options.stop) == 0 {
            if !said && begun.elapsed() > NOTICED && artifacts.writes() {
                let (done, all) = setup.verification.progress();
                observer
                    .message(&format!("waiting for the data's checksums: {done} of {all} shards are right"));
                said = true;
            }
            std::thread::sleep(Duration::from_millis(2));
            done = setup.verification.is_done()?;
        }
        drop(busy);
        // Who is done has found its share right; no one goes on before all have, or a signal came.
        let mut all = [f64::from(u8::from(done))];
        self.agree_to_stop(options, &mut all)?;
        self.verified = all[0] as usize == self.group.world();
        Ok(self.verified)
    }

    /// Says what a checkpoint may rest on that is written because a signal came, and cannot wait.
    pub(super) fn say_unverified(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let verification = &mut self.setup.verification;
        if !verification.is_done()? && self.artifacts.writes() {
            let (done, all) = verification.progress();
            observer.message(&format!(
                "the data was not yet verified as a whole: {done} of {all} shards are right; --resume verifies it anew"
            ));
        }
        Ok(())
    }
}
