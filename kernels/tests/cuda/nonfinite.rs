//! Where a gradient is not finite; exact.

use crate::check::*;
use half::bf16;
use kernels::Backend;
use kernels::backend::STRETCH;
use kernels::cuda::Cuda;

type B = Cuda<bf16>;

fn find(len: usize, bad: &[usize], norm: f32) -> [f32; 2] {
    let cuda = cuda::<bf16>();
    let mut x: Vec<f32> = noise(len, 96).iter().map(|&x| x as f32).collect();
    bad.iter().for_each(|&i| x[i] = if i % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY });
    let (x, norm) = (put(&cuda, &x), put(&cuda, &[norm]));
    let mut place = poisoned::<bf16, f32>(&cuda, 2);
    cuda.find_nonfinite(B::at_mut(&mut place, 0..2), B::at(&x, 0..len), B::at(&norm, 0..1)).unwrap();
    let place = get(&cuda, &place);
    [place[0], place[1]]
}

#[test]
fn the_first_element_that_is_not_finite_is_found() {
    const LEN: usize = 2 * STRETCH + 77;
    assert_eq!(find(LEN, &[0, 5], f32::NAN), [0.0, 0.0]);
    assert_eq!(find(LEN, &[STRETCH - 1], f32::INFINITY), [0.0, (STRETCH - 1) as f32]);
    // several threads find one, the first wins
    assert_eq!(find(LEN, &[LEN - 1, STRETCH + 700, STRETCH + 513, STRETCH + 514], f32::NAN), [1.0, 513.0]);
    assert_eq!(find(LEN, &[LEN - 1], f32::NAN), [2.0, 76.0]);
    // a norm beyond the type's range, of finite elements; and one that is finite, so that nothing is looked at
    assert_eq!(find(LEN, &[], f32::INFINITY), [-1.0; 2]);
    assert_eq!(find(LEN, &[3], 1.0), [-1.0; 2]);
    assert_eq!(find(1, &[0], f32::NAN), [0.0, 0.0]);
    assert_eq!(find(0, &[], f32::NAN), [-1.0; 2]);
}
