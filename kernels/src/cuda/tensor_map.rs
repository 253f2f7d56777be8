//! Tensor maps: what the copy engine (TMA, compute capability 9.0) knows of a matrix whose boxes it moves.

use super::failure::Doing;
use super::launch::Arg;
use crate::{Error, Result};
use cudarc::driver::sys::{
    self, CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Fill, CUtensorMapInterleave as Interleave,
    CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
};
use std::mem::MaybeUninit;

/// Columns of a box: the 128 bytes that a row of swizzled shared memory has.
pub(crate) const BOX_COLUMNS: usize = 64;
/// Most rows of a box.
const BOX_ROWS: usize = 256;
/// Alignment of the matrix and of its rows, in bytes.
const ALIGN: usize = 16;

/// `struct TensorMap` of cu/common/tma.cuh.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct TensorMap(sys::CUtensorMap);

// SAFETY: 128 bytes, which the kernel takes as they are
unsafe impl Arg for TensorMap {}

impl TensorMap {
    /// A matrix of bf16 at `address`, whose rows of `columns` elements are `stride` bytes apart, in boxes of `box_rows` rows and
    /// 64 columns. What is outside of the matrix is read as zeros and never written.
    ///
    /// # Errors
    /// What the copy engine cannot do: a matrix without elements, an address or stride that is no multiple of 16, a box of other
    /// sizes.
    pub fn bf16(
        address: u64,
        rows: usize,
        columns: usize,
        stride: usize,
        box_rows: usize,
        box_columns: usize,
    ) -> Result<Self> {
        let refuse = |what: String| {
            let matrix = format!("a matrix of {rows} x {columns} bf16, {stride} bytes a row, at {address:#x}");
            Err(Error::Device(format!("no tensor map of {matrix}: {what}")))
        };
        if rows == 0 || columns == 0 || rows > u32::MAX as usize || columns > u32::MAX as usize {
            return refuse("both sizes are from 1 to 4,294,967,295".into());
        }
        if address == 0 || !address.is_multiple_of(ALIGN as u64) || !stride.is_multiple_of(ALIGN) {
            return refuse(format!("address and row are multiples of {ALIGN} bytes"));
        }
        if stride < columns * 2 || stride >= 1 << 40 {
            return refuse("a row is at least as long as its elements, and shorter than 1 TiB".into());
        }
        if box_rows == 0 || box_rows > BOX_ROWS || box_columns != BOX_COLUMNS {
            return refuse(format!(
                "its boxes of {box_rows} x {box_columns} are to have 1 to {BOX_ROWS} rows and {BOX_COLUMNS} columns"
            ));
        }
        let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
        let sizes = [columns as u64, rows as u64];
        let strides = [stride as u64];
        let boxes = [box_columns as u32, box_rows as u32];
        // SAFETY: the arrays have as many numbers as two dimensions need; the address is only written down
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut std::ffi::c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                [1, 1].as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        made.doing_with(|| format!("the driver makes no tensor map of {rows} x {columns} bf16 at {address:#x}"))?;
        // SAFETY: the driver wrote it
        Ok(Self(unsafe { map.assume_init() }))
    }
}
