//! Products by cuBLASLt, from plans that are made once.
//!
//! cuBLASLt's matrices are column-major, so that a row-major matrix is its own transpose there, and nothing is transposed in
//! memory. With `op(A) op(B) = D`, sizes in columns' order:
//!
//! | product | A | B | D |
//! | --- | --- | --- | --- |
//! | `y = x w^T` | `w^T`: [outputs, inputs] | x: [inputs, rows] | [outputs, rows] |
//! | `dx = dy w` | w: [inputs, outputs] | dy: [outputs, rows] | [inputs, rows] |
//! | `dw += dy^T x` | x: [inputs, rows] | `dy^T`: [rows, outputs] | [inputs, outputs] |
//!
//! Sums are taken in f32, without TF32; an f32 product is one of f32.
//!
//! An algorithm belongs to a [`Choice`]: a product with its number of rows rounded up ([`bucket`]), as packed batches have
//! another number of rows every time. It is chosen by measurement at the first such product, kept by
//! [`Kept`], and used for other numbers of rows where cuBLASLt says that it fits; where it does not, the first
//! answer of cuBLASLt's heuristic is. So with the same choices the same products give the same bits.

mod choices;
mod kept;
mod library;
mod plan;

pub(crate) use plan::{Family, Operands, Shape};

use super::device::{Device, lock};
use super::{Kind, Options};
use crate::Result;
use choices::{Choice, Choices};
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t as Algorithm;
use kept::Kept;
use library::{Library, explain};
use plan::{Answer, Plan};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

pub(super) use library::{dotted, version};

/// Bytes that algorithms may use while they run: what the library's makers recommend for the newer GPUs.
const WORKSPACE: usize = 32 << 20;
/// Plans that are kept; the one that was not used for longest makes place for a new one.
const PLANS: usize = 1024;
/// Algorithms that are measured.
const CANDIDATES: usize = 16;
/// Measured runs of each; the median counts.
const RUNS: usize = 5;
/// An algorithm is preferred to an earlier answer of the heuristic if it takes at most this share of its time. It keeps
/// noise from changing the choice.
const BETTER: f64 = 0.98;

/// All products of a device.
pub(crate) struct Products {
    device: Arc<Device>,
    library: Library,
    workspace: u64,
    measure: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    plans: HashMap<Shape, (Plan, u64)>,
    /// Counts products, to tell which plan was not used for longest.
    clock: u64,
    choices: Choices,
    kept: Option<Kept>,
    /// Those whose algorithm has run in this process: its code is loaded.
    warm: HashSet<Choice>,
}

/// The number of rows rounded up to an eighth of the power of two above: the rows of a [`Choice`].
fn bucket(rows: usize) -> usize {
    rows.next_multiple_of((rows.next_power_of_two() / 8).max(1))
}

impl Products {
    pub fn new(device: &Arc<Device>, options: &Options) -> Result<Self> {
        let library = Library::open(device)?;
        let workspace = device.alloc("workspace of products", WORKSPACE)?;
        let products = Self {
            device: device.clone(),
            library,
            workspace,
            measure: options.measure,
            state: Mutex::default(),
        };
        let (kept, choices) = Kept::open(&options.choices, &products.machine());
        *lock(&products.state) = State { kept: Some(kept), choices, ..State::default() };
        Ok(products)
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The operands' addresses hold for matrices of the shape.
    pub unsafe fn run(&self, shape: Shape, at: Operands) -> Result<()> {
        let shape = shape.aligned(&at);
        let explain = |error| explain(shape, error);
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.clock += 1;
        if !state.plans.contains_key(&shape) {
            // SAFETY: the caller's
            let plan = unsafe { self.plan(state, shape, &at) }?;
            state.keep(shape, plan);
        }
        let Some((plan, used)) = state.plans.get_mut(&shape) else {
            return Err(explain("the plan was lost".into()));
        };
        *used = state.clock;
        self.device.bind()?;
        self.device.queue(shape.family.name(), || {
            // SAFETY: the caller's; the workspace is used by one product after the other, as they are on one stream
            unsafe { plan.run(&self.library, &at, self.workspace, self.device.compute()) }.map_err(explain)
        })
    }

    /// Makes a plan with the algorithm of the shape's choice.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn plan(&self, state: &mut State, shape: Shape, at: &Operands) -> Result<Plan> {
        let explain = |error| explain(shape, error);
        self.device.bind()?;
        let mut plan = Plan::new(shape).map_err(explain)?;
        let choice = Choice::of(&shape);
        let mut known = state.choices.get(&choice);
        if known.is_none() && self.measure {
            // SAFETY: the caller's
            let best = unsafe { self.best(&mut plan, at) }?;
            state.choices.insert(choice, best);
            let text = state.choices.to_text(&self.machine());
            if let Some(kept) = &mut state.kept {
                kept.save(&text);
            }
            known = Some(best);
        }
        let fitting = known.and_then(|algorithm| plan.check(&self.library, algorithm));
        // Its code may have to be loaded, which is not part of a graph.
        if fitting.is_none() || state.warm.insert(choice) {
            self.device.leave_graph()?;
        }
        plan.algorithm = match fitting {
            Some(algorithm) => algorithm,
            None => plan.answers(&self.library, 1).map_err(explain)?[0].algorithm,
        };
        Ok(plan)
    }

    /// The algorithm that takes the least time on these operands; what is written goes elsewhere.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn best(&self, plan: &mut Plan, at: &Operands) -> Result<Algorithm> {
        let answers = plan.answers(&self.library, CANDIDATES).map_err(|error| explain(plan.shape, error))?;
        let first = answers[0].algorithm;
        let bytes = plan.shape.output_bytes();
        const WHAT: &str = "trials of products";
        // Without memory to try them on, the first answer it is.
        let Ok(output) = self.device.alloc(WHAT, bytes) else { return Ok(first) };
        let trial = Operands { d: output, ..*at };
        // SAFETY: the caller's, and `output` is as large as D
        let times =
            self.device.fill(output, 0, bytes).and_then(|()| unsafe { self.times(plan, &answers, &trial) });
        self.device.free(WHAT, output, bytes);
        let times = times?;
        let mut best = (first, f64::INFINITY);
        for (answer, time) in answers.iter().zip(times) {
            if time < best.1 * BETTER {
                best = (answer.algorithm, time);
            }
        }
        Ok(best.0)
    }

    /// The median time of each algorithm; infinite for one that does not run.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn times(&self, plan: &mut Plan, answers: &[Answer], at: &Operands) -> Result<Vec<f64>> {
        self.device.synchronize()?;
        let mut times = vec![Vec::with_capacity(RUNS + 1); answers.len()];
        // In turns, so that a clock that falls while this goes on is nobody's disadvantage.
        for _ in 0..=RUNS {
            for (answer, times) in answers.iter().zip(&mut times) {
                plan.algorithm = answer.algorithm;
                let mut runs = true;
                let time = self.device.time(|| {
                    // SAFETY: the caller's; the stream is idle
                    let done = unsafe { plan.run(&self.library, at, self.workspace, self.device.compute()) };
                    runs = done.is_ok();
                    Ok(())
                })?;
                times.push(if runs { time } else { f64::INFINITY });
            }
        }
        Ok(times
            .into_iter()
            .map(|mut times| {
                let warm = &mut times[1..];
                warm.sort_by(f64::total_cmp);
                warm[RUNS / 2]
            })
            .collect())
    }

    /// What did not work in keeping choices, once.
    pub fn notice(&self) -> Option<String> {
        lock(&self.state).kept.as_mut()?.notice.take()
    }

    /// What choices depend on.
    fn machine(&self) -> String {
        let (device, (major, minor)) = (&self.device, self.device.arch());
        let driver = super::device::driver_version().unwrap_or(0);
        let name = device.name().split_whitespace().collect::<Vec<_>>().join(" ");
        format!(
            "{name}, compute capability {major}.{minor}, {} multiprocessors, driver {driver}, cuBLASLt {}, workspace {WORKSPACE}",
            device.multiprocessors(),
            self.library.version
        )
    }
}

impl State {
    fn keep(&mut self, shape: Shape, plan: Plan) {
        if self.plans.len() >= PLANS
            && let Some(&oldest) = self.plans.iter().min_by_key(|(_, (_, used))| used).map(|(shape, _)| shape)
        {
            self.plans.remove(&oldest);
        }
        self.plans.insert(shape, (plan, self.clock));
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.device.free("workspace of products", self.workspace, WORKSPACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_up_by_a_quarter_at_most() {
        for rows in 1..5000 {
            let top = bucket(rows);
            assert!(top >= rows && top - rows <= rows / 4, "{rows} -> {top}");
            assert_eq!(bucket(top), top);
        }
        assert_eq!([1, 8, 9, 130, 16384, 16385].map(bucket), [1, 8, 10, 160, 16384, 20480]);
    }
}
