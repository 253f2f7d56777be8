//! Device memory, launches, and what is refused.

use crate::gpu::{Buffer, Pinned, Stream, arg, function, launch, try_launch};
use cudarc::driver::{result, sys};

#[test]
fn fresh_memory_is_poisoned() {
    for len in [1, 1000, 3 << 20] {
        assert!(Buffer::<u32>::fresh(len).read().iter().all(|&v| v == u32::MAX));
    }
    assert!(Pinned::new(1000).values().iter().all(|v| v.to_bits() == u32::MAX));
}

#[test]
fn buffers_are_aligned_to_16_bytes() {
    for len in 1..70 {
        assert_eq!(Buffer::<u8>::fresh(len).at % 16, 0);
    }
}

#[test]
fn copies_and_fills_beyond_a_buffer_are_refused() {
    let stream = Stream::new();
    let buffer = Buffer::from(&[1u8; 20]);
    let mut host = [0u8; 21];
    // SAFETY: the emulator refuses what leaves a buffer.
    unsafe {
        let invalid = |r: sys::CUresult| assert_eq!(r, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        invalid(sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), buffer.at, 21));
        invalid(sys::cuMemcpyHtoD_v2(buffer.at + 1, host.as_ptr().cast(), 20));
        invalid(sys::cuMemsetD8Async(buffer.at, 7, 21, stream.0));
        invalid(sys::cuMemsetD32Async(buffer.at + 2, 7, 1, stream.0));
        invalid(sys::cuMemcpyDtoDAsync_v2(buffer.at, buffer.at + 20, 1, stream.0));
        invalid(sys::cuMemFree_v2(buffer.at + 16));
        assert_eq!(sys::cuMemsetD8Async(buffer.at + 4, 7, 16, stream.0), sys::CUresult::CUDA_SUCCESS);
    }
    stream.wait();
    assert_eq!(buffer.read(), [[1; 4].as_slice(), &[7; 16]].concat());
}

#[test]
fn used_and_free_memory() {
    // Other tests have buffers, too, but none of this size.
    const BYTES: usize = 2 << 30;
    let large = Buffer::<u8>::fresh(BYTES);
    let (free, total) = result::mem_get_info().unwrap();
    assert_eq!(total, 8 << 30);
    assert!(free <= total - BYTES);
    drop(large);
    assert!(result::mem_get_info().unwrap().0 > free + BYTES / 2);
}

#[test]
fn wrong_launches_are_refused() {
    let stream = Stream::new();
    let y = Buffer::<f32>::fresh(2 * 64);
    let code = |grid, block, shared| {
        try_launch(&stream, "test_poison", grid, block, shared, &[arg(y.at)]).map_err(|e| e.0)
    };
    let invalid = Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code((0, 1, 1), (64, 1, 1), 256), invalid);
    assert_eq!(code((1, 65536, 1), (64, 1, 1), 256), invalid);
    assert_eq!(code((1, 1, 1), (1025, 1, 1), 256), invalid);
    assert_eq!(code((1, 1, 1), (32, 33, 1), 256), invalid);
    assert_eq!(code((1, 1, 1), (1, 1, 65), 256), invalid);
    assert_eq!(code((1, 1, 1), (64, 1, 1), 256), Ok(()));
    assert_eq!(function("no_such_kernel").unwrap_err().0, sys::CUresult::CUDA_ERROR_NOT_FOUND);
    stream.wait();
}

#[test]
fn much_shared_memory_needs_the_attribute() {
    let stream = Stream::new();
    let y = Buffer::<f32>::fresh(2 * 64);
    // `test_order` has no dynamic memory of its own and takes any; its attribute is not set elsewhere.
    let order = Buffer::from(&[0i32; 64]);
    let code = |shared| {
        try_launch(&stream, "test_order", (1, 1, 1), (64, 1, 1), shared, &[arg(order.at)]).map_err(|e| e.0)
    };
    let invalid = Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(code(48 << 10), Ok(()));
    assert_eq!(code((48 << 10) + 16), invalid);
    let set = |bytes| {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function lives.
        unsafe { sys::cuFuncSetAttribute(function("test_order").unwrap(), attribute, bytes) }
    };
    assert_eq!(set(227 << 10 | 1), sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(set(200 << 10), sys::CUresult::CUDA_SUCCESS);
    assert_eq!(code(200 << 10), Ok(()));
    assert_eq!(code((200 << 10) + 16), invalid);
    stream.wait();
    drop(y);
}

#[test]
fn parameters_are_told_and_copied_at_launch() {
    let f = function("test_parameters").unwrap();
    let (mut offset, mut size) = (0, 0);
    for (i, expected) in [(0, 8), (8, 1), (16, 24), (40, 2)].into_iter().enumerate() {
        // SAFETY: the function lives, the pointers are valid.
        unsafe { sys::cuFuncGetParamInfo(f, i, &mut offset, &mut size).result().unwrap() };
        assert_eq!((offset, size), expected);
    }
    // SAFETY: as above.
    assert_ne!(unsafe { sys::cuFuncGetParamInfo(f, 4, &mut offset, &mut size) }, sys::CUresult::CUDA_SUCCESS);
    let stream = Stream::new();
    let (x, y) = (Buffer::from(&[1f32; 10]), Buffer::from(&[0f32; 10]));
    for a in [1f32, 2.0, 3.0] {
        launch(&stream, "test_axpy", 1, 32, &[arg(y.at), arg(x.at), arg(a), arg(10i32)]);
    }
    stream.wait();
    assert_eq!(y.read(), [6.0; 10]);
}

#[test]
fn launches_with_attributes() {
    let stream = Stream::new();
    let (x, y) = (Buffer::from(&[1f32; 10]), Buffer::from(&[0f32; 10]));
    let launch = |id: sys::CUlaunchAttributeID, x_of_cluster: u32| {
        let mut args = [arg(y.at), arg(x.at), arg(1f32), arg(10i32)];
        let mut pointers: Vec<*mut std::ffi::c_void> =
            args.iter_mut().map(|a| a.as_mut_ptr().cast()).collect();
        // SAFETY: zeros are a value of each of these; the arguments are those of the kernel.
        unsafe {
            let mut attribute: sys::CUlaunchAttribute = std::mem::zeroed();
            attribute.id = id;
            attribute.value.clusterDim.x = x_of_cluster;
            let mut config: sys::CUlaunchConfig = std::mem::zeroed();
            (config.gridDimX, config.gridDimY, config.gridDimZ) = (1, 1, 1);
            (config.blockDimX, config.blockDimY, config.blockDimZ) = (32, 1, 1);
            (config.hStream, config.attrs, config.numAttrs) = (stream.0, &mut attribute, 1);
            let function = function("test_axpy").unwrap();
            sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut())
        }
    };
    use sys::CUlaunchAttributeID_enum::*;
    assert_eq!(launch(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, 1), sys::CUresult::CUDA_SUCCESS);
    assert_eq!(launch(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, 1), sys::CUresult::CUDA_SUCCESS);
    assert_eq!(launch(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, 2), sys::CUresult::CUDA_ERROR_NOT_SUPPORTED);
    stream.wait();
    assert_eq!(y.read(), [2.0; 10]);
}
