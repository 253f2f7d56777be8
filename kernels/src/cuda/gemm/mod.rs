//! Products by cuBLASLt, from plans that are made once, or by our own kernels.
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
//! On compute capability 9.0 [our own kernels](own) do them too, with GELU fused where it follows or goes before, and are candidates
//! beside cuBLASLt's algorithms. Fused is compared with a product and GELU's kernel, one after the other.
//!
//! What does a product belongs to a [`Choice`]: a product with its number of rows rounded up ([`bucket`]), as packed batches have
//! another number of rows every time. It is chosen by measurement at the first such product, kept by
//! [`Kept`], and used for other numbers of rows. Where an algorithm of cuBLASLt does not fit another number of rows, by its own word, the
//! first answer of cuBLASLt's heuristic is used, as it is where nothing is measured. So with the same choices the same products
//! give the same bits.

mod choices;
mod kept;
mod library;
mod measure;
mod own;
mod plan;

pub use own::Tiles;
pub(crate) use plan::{Family, Operands, Shape};

use super::device::{Device, lock};
use super::{Kind, Options};
use crate::Result;
use choices::{Choice, Choices, Pick};
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t as Algorithm;
use kept::Kept;
use library::{Library, explain};
use plan::Plan;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

pub(super) use library::{dotted, version};

/// Bytes that algorithms may use while they run: what the library's makers recommend for the newer GPUs.
const WORKSPACE: usize = 32 << 20;
/// Plans that are kept; the one that was not used for longest makes place for a new one.
const PLANS: usize = 1024;
/// All products of a device.
pub(crate) struct Products {
    device: Arc<Device>,
    library: Library,
    workspace: u64,
    measure: bool,
    own: Option<Tiles>,
    state: Mutex<State>,
}

/// How a product is done.
enum Way {
    Library(Plan),
    Own(Tiles),
    /// Without what could be fused.
    Apart,
}

#[derive(Default)]
struct State {
    plans: HashMap<Shape, (Way, u64)>,
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
            own: options.own,
            state: Mutex::default(),
        };
        let (kept, choices) = Kept::open(&options.choices, &products.machine());
        *lock(&products.state) = State { kept: Some(kept), choices, ..State::default() };
        Ok(products)
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The operands' addresses hold for matrices of the shape, which has no GELU.
    pub unsafe fn run(&self, shape: Shape, at: Operands) -> Result<()> {
        let shape = shape.aligned(&at);
        let explain = |error| explain(shape, error);
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.clock += 1;
        if !state.plans.contains_key(&shape) {
            // SAFETY: the caller's
            let way = unsafe { self.way(state, shape, &at) }?;
            state.keep(shape, way);
        }
        let Some((way, used)) = state.plans.get_mut(&shape) else {
            return Err(explain("the plan was lost".into()));
        };
        *used = state.clock;
        self.device.bind()?;
        match way {
            // SAFETY: the caller's
            Way::Own(tiles) => unsafe { own::run(&self.device, &shape, *tiles, &at) },
            Way::Library(plan) => self.device.queue(shape.family.name(), || {
                // SAFETY: the caller's; the workspace is used by one product after the other, as they are on one stream
                unsafe { plan.run(&self.library, &at, self.workspace, self.device.compute()) }
                    .map_err(explain)
            }),
            Way::Apart => Err(explain("nothing of a product without GELU".into())),
        }
    }

    /// Queues a product with GELU: our kernel, or `apart`, which queues both.
    ///
    /// # Safety
    /// As [`Self::run`]; `apart` computes what the kernel does.
    pub unsafe fn run_gelu(
        &self,
        shape: Shape,
        at: Operands,
        apart: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let shape = shape.aligned(&at);
        if !own::fits(&self.device, &shape) {
            return apart();
        }
        let known = {
            let mut state = lock(&self.state);
            state.clock += 1;
            let clock = state.clock;
            state.plans.get_mut(&shape).map(|(way, used)| {
                *used = clock;
                if let Way::Own(tiles) = way { Some(*tiles) } else { None }
            })
        };
        let own = match known {
            Some(own) => own,
            None => {
                // SAFETY: the caller's
                let own = unsafe { self.way_with_gelu(shape, &at, apart) }?;
                lock(&self.state).keep(shape, own.map_or(Way::Apart, Way::Own));
                own
            }
        };
        match own {
            // SAFETY: the caller's
            Some(tiles) => unsafe { own::run(&self.device, &shape, tiles, &at) },
            None => apart(),
        }
    }

    /// What the options ask for.
    fn asked(&self, shape: &Shape) -> Option<Tiles> {
        let Tiles { columns, parts } = self.own.filter(|_| own::fits(&self.device, shape))?;
        Some(Tiles { columns, parts: parts.min(own::most_parts(shape)) })
    }

    /// The way of the shape's choice.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn way(&self, state: &mut State, shape: Shape, at: &Operands) -> Result<Way> {
        if let Some(tiles) = self.asked(&shape) {
            return Ok(Way::Own(tiles));
        }
        let explain = |error| explain(shape, error);
        self.device.bind()?;
        let mut plan = Plan::new(shape).map_err(explain)?;
        let choice = Choice::of(&shape);
        let mut known = state.choices.get(&choice);
        if known.is_none() && self.measure {
            // SAFETY: the caller's
            let best = unsafe { self.best(&mut plan, at) }?;
            self.choose(state, choice, best);
            known = Some(best);
        }
        let fitting = match known {
            Some(Pick::Own(tiles)) if own::takes(&shape, tiles) && own::fits(&self.device, &shape) => {
                return Ok(Way::Own(tiles));
            }
            Some(Pick::Library(data)) => plan.check(&self.library, Algorithm { data }),
            _ => None,
        };
        // Its code may have to be loaded, which is not part of a graph.
        if fitting.is_none() || state.warm.insert(choice) {
            self.device.leave_graph()?;
        }
        plan.algorithm = match fitting {
            Some(algorithm) => algorithm,
            None => plan.answers(&self.library, 1).map_err(explain)?[0],
        };
        Ok(Way::Library(plan))
    }

    /// Our kernel for a shape with GELU, or none.
    ///
    /// # Safety
    /// As [`Self::run_gelu`].
    unsafe fn way_with_gelu(
        &self,
        shape: Shape,
        at: &Operands,
        apart: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Tiles>> {
        if let Some(tiles) = self.asked(&shape) {
            return Ok(Some(tiles));
        }
        let choice = Choice::of(&shape);
        let mut known = lock(&self.state).choices.get(&choice);
        if known.is_none() && self.measure {
            // SAFETY: the caller's
            let best = unsafe { self.best_with_gelu(&shape, at, apart) }?;
            self.choose(&mut lock(&self.state), choice, best);
            known = Some(best);
        }
        Ok(match known {
            Some(Pick::Own(tiles)) if own::takes(&shape, tiles) => Some(tiles),
            _ => None,
        })
    }

    /// Remembers a choice, in this process and in files.
    fn choose(&self, state: &mut State, choice: Choice, pick: Pick) {
        state.choices.insert(choice, pick);
        let text = state.choices.to_text(&self.machine());
        if let Some(kept) = &mut state.kept {
            kept.save(&text);
        }
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
    fn keep(&mut self, shape: Shape, way: Way) {
        if self.plans.len() >= PLANS
            && let Some(&oldest) = self.plans.iter().min_by_key(|(_, (_, used))| used).map(|(shape, _)| shape)
        {
            self.plans.remove(&oldest);
        }
        self.plans.insert(shape, (way, self.clock));
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
