//! What the tests of all ops share.

use bytemuck::Pod;
use half::bf16;
use kernels::backend::Dropout;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Device, Element, IMAGES, Image, Kind, Memory, Options};
use kernels::philox::{DropoutRate, Stream};
use kernels::{Backend, Scalar};
use std::sync::{Arc, OnceLock};

/// The GPU, or the emulator.
pub fn device() -> Arc<Device> {
    static REAL: OnceLock<bool> = OnceLock::new();
    let real = *REAL.get_or_init(|| {
        let real = kernels::cuda::count().is_ok();
        let required = std::env::var_os("REQUIRE_GPU").is_some_and(|v| v != "0");
        assert!(real || !required, "REQUIRE_GPU is set: {:?}", kernels::cuda::count());
        if !real {
            emulator::load_archs(&[90, 80]);
        }
        real
    });
    open(real, 0)
}

/// A GPU that lacks the kernels of compute capability 9.0: on the emulator alone.
pub fn older_device() -> Option<Arc<Device>> {
    let emulated = device().name().to_lowercase().contains("emulat");
    emulated.then(|| open(false, 1))
}

fn open(real: bool, ordinal: usize) -> Arc<Device> {
    if real || !IMAGES.is_empty() {
        return Device::open(ordinal).unwrap();
    }
    // The emulator finds kernels by their names.
    Device::open_with(ordinal, &[Image::named("emulated")]).unwrap()
}

/// A backend of its own. Products' algorithms are not measured, so that every run has the same.
pub fn cuda<E: Element>() -> Cuda<E> {
    Cuda::new(device(), Options { graph: false, measure: false, ..Options::default() }).unwrap()
}

/// Whether this is the emulator.
pub fn is_emulated<E: Element>(cuda: &Cuda<E>) -> bool {
    cuda.device().name().to_lowercase().contains("emulat")
}

/// On the GPU.
pub fn put<E: Element, T: Pod + Send + Sync>(cuda: &Cuda<E>, host: &[T]) -> Memory<T> {
    let mut memory = cuda.zeros("a test's input", host.len()).unwrap();
    cuda.upload(Cuda::<E>::at_mut(&mut memory, 0..host.len()), host).unwrap();
    memory
}

/// Elements on the GPU, rounded from f64.
pub fn put_elems<E: Element>(cuda: &Cuda<E>, values: &[f64]) -> Memory<E> {
    put(cuda, &elems::<E>(values))
}

/// Floats on the GPU.
pub fn put_f32<E: Element>(cuda: &Cuda<E>, values: &[f64]) -> Memory<f32> {
    put(cuda, &values.iter().map(|&x| x as f32).collect::<Vec<_>>())
}

/// An output that no op may leave as it is: NaN, or a very large index.
pub fn poisoned<E: Element, T: Pod + Send + Sync>(cuda: &Cuda<E>, len: usize) -> Memory<T> {
    put(cuda, &vec![bytemuck::pod_read_unaligned::<T>(&vec![0xff; size_of::<T>()]); len])
}

/// Back on the host.
pub fn get<E: Element, T: Pod + Send + Sync>(cuda: &Cuda<E>, memory: &Memory<T>) -> Vec<T> {
    let mut host = vec![T::zeroed(); memory.len()];
    cuda.download(Cuda::<E>::at(memory, 0..memory.len()), &mut host).unwrap();
    host
}

/// Elements back on the host, widened.
pub fn get_elems<E: Element>(cuda: &Cuda<E>, memory: &Memory<E>) -> Vec<f64> {
    get(cuda, memory).into_iter().map(Element::to_f64).collect()
}

/// Floats back on the host, widened.
pub fn get_f32<E: Element>(cuda: &Cuda<E>, memory: &Memory<f32>) -> Vec<f64> {
    get(cuda, memory).into_iter().map(f64::from).collect()
}

/// Uniform numbers in [-1, 1).
pub fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut stream = Stream::new(seed, 0, 98);
    (0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect()
}

/// Rounded to the elements' type.
pub fn elems<E: Element>(values: &[f64]) -> Vec<E> {
    values.iter().map(|&x| E::from_f32(x as f32)).collect()
}

/// What elements hold of these numbers.
pub fn rounded<E: Element>(values: &[f64]) -> Vec<f64> {
    elems::<E>(values).into_iter().map(Element::to_f64).collect()
}

/// What f32 holds of these numbers.
pub fn rounded_f32(values: &[f64]) -> Vec<f64> {
    rounded::<f32>(values)
}

/// Distinct row keys.
pub fn row_keys(rows: usize) -> Vec<u32> {
    (0..rows as u32).map(|row| row * 7919 + 13).collect()
}

/// Dropout at rate `p` under fixed keys.
pub fn gpu_dropout<E: Element>(p: f64, keys: &Memory<u32>) -> Dropout<'_, Cuda<E>> {
    let row_keys = Cuda::<E>::at(keys, 0..keys.len());
    Dropout { rate: DropoutRate::new(p), key: 0x5eed, site: 11, row_keys }
}

/// The same on the CPU.
pub fn cpu_dropout<T: Scalar>(p: f64, row_keys: &[u32]) -> Dropout<'_, Cpu<T>> {
    Dropout { rate: DropoutRate::new(p), key: 0x5eed, site: 11, row_keys }
}

/// Euclidean norm of the difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// The error of an output of elements: at most `times` that of rounding the exact answer (2 is the rule), or where that
/// is nothing, as for few elements, of half a unit in the last place of each.
#[track_caller]
pub fn close<E: Element>(what: &str, got: &[f64], exact: &[f64], times: f64) {
    let epsilon = match E::KIND {
        Kind::F32 => f64::from(f32::EPSILON),
        Kind::Bf16 => f64::from(bf16::EPSILON),
    };
    within(what, got, exact, times, distance(&rounded::<E>(exact), exact), epsilon);
}

/// The same for an output of f32, which sums over many elements may make `times` as far off.
#[track_caller]
pub fn close_f32(what: &str, got: &[f64], exact: &[f64], times: f64) {
    let cost = distance(&rounded_f32(exact), exact);
    within(what, got, exact, times, cost, f32::EPSILON.into());
}

#[track_caller]
fn within(what: &str, got: &[f64], exact: &[f64], times: f64, cost: f64, epsilon: f64) {
    assert!(exact.iter().all(|x| x.is_finite()), "{what}: the oracle is not finite");
    let size = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
    // Rounding to nearest is off by 0.29 of the distance of two neighbours, root mean square; a few elements may be luckier.
    let cost = cost.max(epsilon * size / 8.0);
    let error = distance(got, exact);
    let worst = (0..got.len()).max_by(|&a, &b| {
        let off = |i: usize| (got[i] - exact[i]).abs();
        off(a).total_cmp(&off(b))
    });
    let example = worst.map(|i| format!("; at {i} {} for {}", got[i], exact[i])).unwrap_or_default();
    assert!(
        error <= times * cost + 1e-300,
        "{what}: off by {error:.3e}, {:.2} times what rounding costs, over {times}{example}",
        error / cost
    );
}

/// The same bits, NaN included.
#[track_caller]
pub fn same_bits<T: Pod>(what: &str, a: &[T], b: &[T]) {
    assert!(bytemuck::cast_slice::<T, u8>(a) == bytemuck::cast_slice::<T, u8>(b), "{what}: other bits");
}

#[test]
fn poison_stays_where_nothing_is_written() {
    let cuda = cuda::<bf16>();
    let memory = poisoned::<bf16, f32>(&cuda, 5);
    assert!(get_f32(&cuda, &memory).iter().all(|x| x.is_nan()));
    assert_eq!(get_elems(&cuda, &put_elems(&cuda, &[1.0, 1.00390625, -3.0])), [1.0, 1.0, -3.0]);
}
