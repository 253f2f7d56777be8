//! placeholder
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};

#[test]
fn axpy() {
    emulator::load();
    emulator::open("libemulator_tests.so");
    unsafe {
        assert!(sys::is_culib_present());
        result::init().unwrap();
        let device = result::device::get(0).unwrap();
        let ctx = result::primary_ctx::retain(device).unwrap();
        result::ctx::set_current(ctx).unwrap();
        let module = result::module::load_data([0u8; 16].as_ptr().cast()).unwrap();
        let f = result::module::get_function(module, CString::new("test_axpy").unwrap()).unwrap();
        let n = 1000;
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let dx = result::malloc_sync(n * 4).unwrap();
        let dy = result::malloc_sync(n * 4).unwrap();
        result::memcpy_htod_sync(dx, &x).unwrap();
        result::memcpy_htod_sync(dy, &x).unwrap();
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
        let (mut a, mut n32) = (2.0f32, n as i32);
        let (mut px, mut py) = (dx, dy);
        let mut params: [*mut c_void; 4] = [(&raw mut py).cast(), (&raw mut px).cast(), (&raw mut a).cast(), (&raw mut n32).cast()];
        result::launch_kernel(f, (4, 1, 1), (256, 1, 1), 0, stream, &mut params).unwrap();
        result::stream::synchronize(stream).unwrap();
        let mut y = vec![0f32; n];
        result::memcpy_dtoh_sync(&mut y, dy).unwrap();
        assert!(y.iter().enumerate().all(|(i, y)| *y == 3.0 * i as f32));
    }
}
