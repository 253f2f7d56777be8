//! Memory of the CPU backend: zeroed buffers on cache lines, and scratch that is kept between calls.

use crate::{Error, Result, limits};
use bytemuck::{Pod, Zeroable};
use std::alloc::{Layout, alloc_zeroed};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Mutex;

/// Bytes of the machine's memory, or what this process is let have of it where that is less.
pub fn total() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = Some(system.total_memory()).filter(|&bytes| bytes > 0);
    let limit = limits::memory(Path::new("/")).map(|limit| limit.value);
    machine.into_iter().chain(limit).min()
}

/// What keeps this process from having all of the machine's memory, for a message; none if nothing does.
pub fn limited_by() -> Option<String> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let limit = limits::memory(Path::new("/"))?;
    (limit.value < system.total_memory()).then_some(limit.source)
}

/// Zeros; `what` names them in the error. Where the system has not so much memory, the process goes on.
pub fn zeros<T: Zeroable>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let out_of_memory = Error::OutOfMemory { what, bytes: len.saturating_mul(size_of::<T>()) };
    let Ok(layout) = Layout::array::<T>(len) else {
        return Err(out_of_memory);
    };
    if layout.size() == 0 {
        return Ok((0..len).map(|_| T::zeroed()).collect());
    }
    // SAFETY: the layout's size is not zero
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        return Err(out_of_memory);
    }
    // SAFETY: allocated by the global allocator with the layout of `len` elements, for each of which zeros are valid
    Ok(unsafe { Vec::from_raw_parts(memory.cast(), len, len) })
}

/// One cache line, the unit of allocation: vector loads of aligned rows then never straddle two lines.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A zeroed array of plain elements, aligned to 64 bytes.
pub struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Zeroed. `what` names the buffer in the error.
    pub fn zeroed(what: &'static str, len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        Ok(Self { lines: zeros(what, bytes.div_ceil(size_of::<Line>()))?, len, kind: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements.
    pub fn as_slice(&self) -> &[T] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.lines);
        bytemuck::cast_slice(&bytes[..self.len * size_of::<T>()])
    }

    /// All elements.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.lines);
        bytemuck::cast_slice_mut(&mut bytes[..self.len * size_of::<T>()])
    }
}

/// Buffers that ops borrow and give back, so that a step allocates nothing once it has run before. Their contents
/// are whatever the last user left.
#[derive(Default)]
pub struct Scratch {
    free: Mutex<Vec<Vec<Line>>>,
}

impl Scratch {
    /// Calls `f` with `len` elements of unspecified value.
    pub fn with<T: Pod, R>(&self, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let mut buffer = self.take(lines);
        if buffer.len() < lines {
            buffer.resize(lines, Line([0; 64]));
        }
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer[..lines]);
        let result = f(&mut bytemuck::cast_slice_mut(bytes)[..len]);
        self.lock().push(buffer);
        result
    }

    /// The smallest free buffer that is large enough, else the largest.
    fn take(&self, lines: usize) -> Vec<Line> {
        let mut free = self.lock();
        let fits =
            |b: &Vec<Line>| (b.len() < lines, if b.len() < lines { usize::MAX - b.len() } else { b.len() });
        match (0..free.len()).min_by_key(|&i| fits(&free[i])) {
            Some(best) => free.swap_remove(best),
            None => Vec::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<Line>>> {
        // a panic cannot leave the list half changed
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
