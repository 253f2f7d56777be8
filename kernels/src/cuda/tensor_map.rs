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
            let matrix =
                format!("a matrix of {rows} x {columns} bf16, {stride} bytes a row, at {address:#x}");
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
        made.doing_with(|| {
            format!("the driver makes no tensor map of {rows} x {columns} bf16 at {address:#x}")
        })?;
        // SAFETY: the driver wrote it
        Ok(Self(unsafe { map.assume_init() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::launch::{Launch, tests::open};
    use half::bf16;

    #[test]
    fn what_the_copy_engine_cannot_do_is_refused() {
        let device = open(0);
        if device.arch().0 < 9 {
            println!("skipped: compute capability {:?} has no tensor maps", device.arch());
            return;
        }
        assert!(TensorMap::bf16(4096, 100, 72, 144, 64, 64).is_ok());
        let wrong = [
            (TensorMap::bf16(4096, 0, 72, 144, 64, 64), "both sizes are from 1"),
            (TensorMap::bf16(4104, 100, 72, 144, 64, 64), "multiples of 16 bytes"),
            (TensorMap::bf16(4096, 100, 72, 148, 64, 64), "multiples of 16 bytes"),
            (TensorMap::bf16(4096, 100, 72, 128, 64, 64), "at least as long as its elements"),
            (TensorMap::bf16(4096, 100, 72, 144, 257, 64), "boxes of 257 x 64"),
            (TensorMap::bf16(4096, 100, 72, 144, 64, 32), "boxes of 64 x 32"),
        ];
        for (map, words) in wrong {
            let error = map.err().unwrap().to_string();
            assert!(error.contains(words) && error.contains("no tensor map of a matrix of"), "{error}");
        }
    }

    /// A kernel of the emulator's own tests, which has maps and numbers for arguments, on a GPU that has it and on one that
    /// has not.
    #[test]
    fn a_kernel_takes_maps() {
        let device = open(0);
        if !device.name().contains("Emulator") {
            println!("skipped: the kernel is the emulator's");
            return;
        }
        emulator::open("libemulator_tests.so");
        assert!(!open(1).has_kernel("test_tiles") && open(1).has_kernel("tanh_forward_f32"));
        assert!(device.has_kernel("test_tiles") && !device.has_kernel("no_such_kernel"));
        let (rows, columns, lines) = (70, 72, 64);
        let x: Vec<bf16> = (0..rows * columns).map(|i| bf16::from_f32(i as f32 % 251.0)).collect();
        let bytes = x.len() * 2;
        let [from, to] = [(); 2].map(|()| device.alloc("a test's matrix", bytes).unwrap());
        let seen = device.alloc("a test's tile", lines * 64 * 4).unwrap();
        device.upload(from, bytemuck::cast_slice(&x)).unwrap();
        let map = |at| TensorMap::bf16(at, rows, columns, columns * 2, lines, BOX_COLUMNS).unwrap();
        let launch = Launch::new(&device, "test_tiles").arg(map(from)).arg(map(to)).arg(seen);
        let launch = [3i32, 8, 3, 8, lines as i32].into_iter().fold(launch, Launch::arg);
        // SAFETY: the arguments are those of the kernel, whose tile is in `shared`
        unsafe { launch.run([1; 3], [64, 1, 1], lines * 128) }.unwrap();
        let mut y = vec![bf16::ZERO; x.len()];
        device.download(bytemuck::cast_slice_mut(&mut y), to).unwrap();
        for row in 3..3 + lines {
            let range = row * columns + 8..(row + 1) * columns;
            assert_eq!(y[range.clone()], x[range], "row {row}");
        }
        assert!(y[..3 * columns + 8].iter().all(|x| x.is_nan()), "written outside of the box");
        for (what, at, bytes) in
            [("matrix", from, bytes), ("matrix", to, bytes), ("tile", seen, lines * 64 * 4)]
        {
            device.free(what, at, bytes);
        }
    }
}
