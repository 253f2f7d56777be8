//! Owned and borrowed memory of a GPU.

use super::device::Device;
use crate::{Error, Result};
use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Elements on a GPU.
pub struct Memory<T> {
    device: Arc<Device>,
    what: &'static str,
    ptr: u64,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Memory<T> {
    /// Zeroed. `what` names the buffer in errors and in the table of memory.
    pub(crate) fn zeroed(device: &Arc<Device>, what: &'static str, len: usize) -> Result<Self> {
        let Some(bytes) = len.checked_mul(size_of::<T>()) else {
            return Err(Error::OutOfMemory { what, bytes: usize::MAX });
        };
        let ptr = device.alloc(what, bytes)?;
        let memory = Self { device: device.clone(), what, ptr, len, kind: PhantomData };
        device.fill(ptr, 0, bytes)?;
        Ok(memory)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn offset(&self, range: &Range<usize>) -> u64 {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {} elements of {}",
            self.len,
            self.what
        );
        self.ptr + (range.start * size_of::<T>()) as u64
    }

    /// Borrows a range, which must lie inside.
    pub(crate) fn view(&self, range: Range<usize>) -> View<'_, T> {
        View { ptr: self.offset(&range), len: range.len(), kind: PhantomData }
    }

    /// Mutably borrows a range, which must lie inside.
    pub(crate) fn view_mut(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        ViewMut { ptr: self.offset(&range), len: range.len(), kind: PhantomData }
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        self.device.free(self.what, self.ptr, self.len * size_of::<T>());
    }
}

/// Borrowed elements on a GPU.
pub struct View<'a, T> {
    ptr: u64,
    len: usize,
    kind: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for View<'_, T> {}

/// Mutably borrowed elements on a GPU.
pub struct ViewMut<'a, T> {
    ptr: u64,
    len: usize,
    kind: PhantomData<&'a mut T>,
}

impl<'a, T> View<'a, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address on the GPU; 0 where there are no elements.
    pub(crate) fn ptr(&self) -> u64 {
        self.ptr
    }

    /// The same elements for a shorter time.
    pub(crate) fn shorten<'short>(self) -> View<'short, T>
    where
        'a: 'short,
    {
        View { ptr: self.ptr, len: self.len, kind: PhantomData }
    }

    /// The same memory as elements of a type of the same size.
    pub(crate) fn cast<U>(self) -> View<'a, U> {
        assert_eq!(size_of::<T>(), size_of::<U>());
        View { ptr: self.ptr, len: self.len, kind: PhantomData }
    }

    /// Whether an access of 16 bytes may start at the first element.
    pub(crate) fn is_aligned(&self) -> bool {
        self.ptr.is_multiple_of(16)
    }
}

impl<T> ViewMut<'_, T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address on the GPU; 0 where there are no elements.
    pub(crate) fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Whether an access of 16 bytes may start at the first element.
    pub(crate) fn is_aligned(&self) -> bool {
        self.ptr.is_multiple_of(16)
    }

    /// The elements, to be read.
    pub(crate) fn view(&self) -> View<'_, T> {
        View { ptr: self.ptr, len: self.len, kind: PhantomData }
    }

    /// A part, which must lie inside.
    pub(crate) fn part(&mut self, range: Range<usize>) -> ViewMut<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        ViewMut { ptr: self.ptr + (range.start * size_of::<T>()) as u64, len: range.len(), kind: PhantomData }
    }
}

// SAFETY: an address and a length; what it points to is Send and Sync like the host's memory of the same type
unsafe impl<T: Send + Sync> Send for View<'_, T> {}
// SAFETY: as above
unsafe impl<T: Send + Sync> Sync for View<'_, T> {}
// SAFETY: as above
unsafe impl<T: Send + Sync> Send for ViewMut<'_, T> {}
// SAFETY: as above
unsafe impl<T: Send + Sync> Sync for ViewMut<'_, T> {}
