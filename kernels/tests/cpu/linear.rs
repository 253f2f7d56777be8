use crate::check::*;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::{Backend, Scalar};

/// `x w^T + bias`.
#[derive(Debug)]
struct Linear {
    size: LinearSize,
    bias: bool,
    /// Whether dgrad adds to what is there.
    accumulate: bool,
}

impl Linear {
    fn new(rows: usize, inputs: usize, outputs: usize, bias: bool, accumulate: bool) -> Self {
        Self { size: LinearSize { rows, inputs, outputs }, bias, accumulate }
    }
}

impl Op for Linear {
    fn inputs(&self) -> Vec<Vec<f64>> {
        let LinearSize { rows, inputs, outputs } = self.size;
        let bias = if self.bias { outputs } else { 0 };
        vec![noise(rows * inputs, 40), noise(outputs * inputs, 41), noise(bias, 42)]
    }

    fn run<T: Scalar>(&self, inputs: &[Vec<f64>]) -> Run {
        let size = self.size;
        let [x, w, bias] = [0, 1, 2].map(|i| cast::<T>(&inputs[i]));
        let cpu = Cpu::<T>::new();
        let mut y = poison::<T>(size.rows * size.outputs);
        let forward =
            LinearForward::<Cpu<T>> { y: &mut y, x: &x, w: &w, bias: self.bias.then_some(&bias), size };
        cpu.linear_forward(forward).unwrap();
        let dy = cast::<T>(&self.dy(y.len()));
        let before = noise(x.len(), 43);
        let mut dx = if self.accumulate { cast::<T>(&before) } else { poison(x.len()) };
        let dgrad = LinearDgrad::<Cpu<T>> { dx: &mut dx, dy: &dy, w: &w, accumulate: self.accumulate, size };
        cpu.linear_dgrad(dgrad).unwrap();
        let dx = if self.accumulate { minus(&wide(&dx), &before) } else { wide(&dx) };
        let before = noise(w.len() + bias.len(), 44);
        let mut grads = cast::<T>(&before);
        let wgrad =
            LinearWgrad::<Cpu<T>> { grads: &mut grads, dw: bias.len()..before.len(), dy: &dy, x: &x, size };
        cpu.linear_wgrad(wgrad).unwrap();
        if self.bias {
            let size = Size2 { rows: size.rows, cols: size.outputs };
            cpu.bias_grad(BiasGrad::<Cpu<T>> { grads: &mut grads, dbias: 0..bias.len(), dy: &dy, size })
                .unwrap();
        }
        let grads = minus(&wide(&grads), &before);
        let (dbias, dw) = grads.split_at(bias.len());
        Run { y: wide(&y), gradients: vec![dx, dw.to_vec(), dbias.to_vec()] }
    }
}

/// `gelu(x up^T + bias) down^T`, to as many columns as x has.
#[derive(Debug)]
struct FeedForward {
    size: LinearSize,
    kind: Gelu,
}

impl FeedForward {
    fn new(rows: usize, inputs: usize, outputs: usize, kind: Gelu) -> Self {
        Self { size: LinearSize { rows, inputs, outputs }, kind }
    }

    /// The second layer's sizes.
    fn down(&self) -> LinearSize {
        let LinearSize { rows, inputs, outputs } = self.size;
        LinearSize { rows, inputs: outputs, outputs: inputs }
    }
}

impl Op for FeedForward {
    fn inputs(&self) -> Vec<Vec<f64>> {
        let LinearSize { rows, inputs, outputs } = self.size;
        [rows * inputs, outputs * inputs, outputs, inputs * outputs]
            .iter()
            .map(|&len| noise(len, 45))
            .collect()
    }

    fn run<T: Scalar>(&self, values: &[Vec<f64>]) -> Run {
        let (size, down, kind, cpu) = (self.size, self.down(), self.kind, Cpu::<T>::new());
        let LinearSize { rows, inputs, outputs } = size;
        let [x, w, bias, v] = [0, 1, 2, 3].map(|i| cast::<T>(&values[i]));
        let [mut inner, mut gelu, mut dinner] = [0; 3].map(|_| poison::<T>(rows * outputs));
        let [mut y, mut dx] = [0; 2].map(|_| poison::<T>(rows * inputs));
        let (kept, active) = (&mut inner, &mut gelu);
        cpu.linear_gelu_forward(LinearGeluForward::<Cpu<T>> {
            y: active,
            inner: kept,
            x: &x,
            w: &w,
            bias: &bias,
            kind,
            size,
        })
        .unwrap();
        cpu.linear_forward(LinearForward::<Cpu<T>> { y: &mut y, x: &gelu, w: &v, bias: None, size: down })
            .unwrap();
        let dy = cast::<T>(&self.dy(y.len()));
        let before = noise(outputs + w.len() + v.len(), 46);
        let (mut grads, dv) = (cast::<T>(&before), outputs + w.len()..before.len());
        cpu.linear_gelu_dgrad(LinearGeluDgrad::<Cpu<T>> {
            dinner: &mut dinner,
            dy: &dy,
            w: &v,
            inner: &inner,
            kind,
            grads: &mut grads,
            dbias: 0..outputs,
            size: down,
        })
        .unwrap();
        let wgrad = |grads: &mut Vec<T>, dw, dy: &[T], x: &[T], size| {
            cpu.linear_wgrad(LinearWgrad::<Cpu<T>> { grads, dw, dy, x, size }).unwrap();
        };
        wgrad(&mut grads, dv.clone(), &dy, &gelu, down);
        wgrad(&mut grads, outputs..dv.start, &dinner, &x, size);
        let dgrad = LinearDgrad::<Cpu<T>> { dx: &mut dx, dy: &dinner, w: &w, accumulate: false, size };
        cpu.linear_dgrad(dgrad).unwrap();
        let grads = minus(&wide(&grads), &before);
        let (dw, dbias) = (grads[outputs..dv.start].to_vec(), grads[..outputs].to_vec());
        Run { y: wide(&y), gradients: vec![wide(&dx), dw, dbias, grads[dv].to_vec()] }
    }
}

#[test]
fn gradients_of_a_feed_forward_part() {
    for (rows, inputs, outputs) in [(1, 3, 5), (7, 4, 9), (33, 1, 2)] {
        finite_differences(&FeedForward::new(rows, inputs, outputs, Gelu::Tanh));
        finite_differences(&FeedForward::new(rows, inputs, outputs, Gelu::Erf));
    }
}

#[test]
fn gelu_with_a_product_is_the_product_and_gelu() {
    let (size, kind, cpu) =
        (LinearSize { rows: 70, inputs: 33, outputs: 130 }, Gelu::Tanh, Cpu::<f32>::new());
    let [x, w, bias, dy] = [(70 * 33, 1), (130 * 33, 2), (130, 3), (70 * 33, 4)]
        .map(|(len, seed)| cast::<f32>(&noise(len, seed)));
    let [mut y, mut inner, mut dinner] = [0; 3].map(|_| poison::<f32>(70 * 130));
    let [mut y2, mut inner2, mut dinner2] = [0; 3].map(|_| poison::<f32>(70 * 130));
    let [mut grads, mut grads2] = [0; 2].map(|_| cast::<f32>(&noise(130, 5)));
    let (kept, active) = (&mut inner, &mut y);
    cpu.linear_gelu_forward(LinearGeluForward {
        y: active,
        inner: kept,
        x: &x,
        w: &w,
        bias: &bias,
        kind,
        size,
    })
    .unwrap();
    cpu.linear_forward(LinearForward { y: &mut inner2, x: &x, w: &w, bias: Some(&bias), size }).unwrap();
    cpu.gelu_forward(GeluForward { y: &mut y2, x: &inner2, kind }).unwrap();
    assert!(inner == inner2 && y == y2);
    // The same weight as that of a layer from 130 to 33, which dgrad goes through backward.
    let (size, dbias) = (LinearSize { rows: 70, inputs: 130, outputs: 33 }, 0..130);
    let (table, out) = (&mut grads, &mut dinner);
    cpu.linear_gelu_dgrad(LinearGeluDgrad {
        dinner: out,
        dy: &dy,
        w: &w,
        inner: &inner,
        kind,
        grads: table,
        dbias: dbias.clone(),
        size,
    })
    .unwrap();
    cpu.linear_dgrad(LinearDgrad { dx: &mut dinner2, dy: &dy, w: &w, accumulate: false, size }).unwrap();
    let (table, dy, size) = (&mut grads2, &mut dinner2, Size2 { rows: 70, cols: 130 });
    cpu.gelu_backward(GeluBackward { dy, x: &inner, kind, grads: table, dbias, size }).unwrap();
    assert!(dinner == dinner2 && grads == grads2);
}

#[test]
fn gradients() {
    for (rows, inputs, outputs) in [(1, 17, 30), (2, 5, 1), (70, 17, 30), (33, 1, 2), (65, 64, 3)] {
        finite_differences(&Linear::new(rows, inputs, outputs, true, false));
        finite_differences(&Linear::new(rows, inputs, outputs, false, true));
    }
}

#[test]
fn f32_is_close() {
    single_precision(&Linear::new(130, 99, 77, true, false), 40.0);
    single_precision(&Linear::new(1, 300, 2, true, true), 40.0);
}

#[test]
fn threads_do_not_matter() {
    any_threads(&Linear::new(500, 257, 301, true, false));
    any_threads(&Linear::new(301, 1030, 130, false, true));
}

#[test]
fn reruns_are_equal() {
    let op = Linear::new(300, 700, 200, true, true);
    let first = op.run::<f32>(&op.inputs());
    for _ in 0..5 {
        assert!(op.run::<f32>(&op.inputs()) == first);
    }
}
