use crate::check::*;
use half::bf16;
use kernels::Backend;
use kernels::backend::*;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, Element, Kind, Options};

/// Everything that one linear layer computes.
struct Answers {
    y: Vec<f64>,
    dx: Vec<f64>,
    grads: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Linear {
    size: LinearSize,
    bias: bool,
    accumulate: bool,
}

/// Floats before the gradient of the weight in the table of gradients.
const BEFORE: usize = 5;

impl Linear {
    fn new(rows: usize, inputs: usize, outputs: usize, bias: bool, accumulate: bool) -> Self {
        Self { size: LinearSize { rows, inputs, outputs }, bias, accumulate }
    }

    /// x, w, bias, dy, dx before, gradients before: as the elements hold them, the last as f32.
    fn inputs<E: Element>(&self) -> [Vec<f64>; 6] {
        let LinearSize { rows, inputs, outputs } = self.size;
        let elems = [rows * inputs, outputs * inputs, outputs, rows * outputs, rows * inputs];
        let mut seed = 40;
        let [x, w, bias, dy, dx] = elems.map(|len| {
            seed += 1;
            rounded::<E>(&noise(len, seed))
        });
        [x, w, bias, dy, dx, rounded_f32(&noise(BEFORE + outputs * inputs + 3, 46))]
    }

    fn exact<E: Element>(&self) -> Answers {
        let (size, cpu) = (self.size, Cpu::<f64>::new());
        let [x, w, bias, dy, mut dx, mut grads] = self.inputs::<E>();
        let mut y = vec![f64::NAN; size.rows * size.outputs];
        let bias = self.bias.then_some(&bias[..]);
        cpu.linear_forward(LinearForward { y: &mut y, x: &x, w: &w, bias, size }).unwrap();
        let accumulate = self.accumulate;
        cpu.linear_dgrad(LinearDgrad { dx: &mut dx, dy: &dy, w: &w, accumulate, size }).unwrap();
        let dw = BEFORE..BEFORE + w.len();
        cpu.linear_wgrad(LinearWgrad { grads: &mut grads, dw, dy: &dy, x: &x, size }).unwrap();
        Answers { y, dx, grads }
    }

    fn run<E: Element>(&self, cuda: &Cuda<E>) -> Answers {
        let size = self.size;
        let [x, w, bias, dy, dx, grads] = self.inputs::<E>();
        let [x, w, bias, dy] = [x, w, bias, dy].map(|values| put_elems(cuda, &values));
        let mut dx = if self.accumulate { put_elems(cuda, &dx) } else { poisoned(cuda, dx.len()) };
        let mut grads = put_f32(cuda, &grads);
        let mut y = poisoned::<E, E>(cuda, size.rows * size.outputs);
        let (len, n) = (y.len(), dx.len());
        cuda.linear_forward(LinearForward {
            y: Cuda::<E>::at_mut(&mut y, 0..len),
            x: all(&x),
            w: all(&w),
            bias: self.bias.then(|| all(&bias)),
            size,
        })
        .unwrap();
        cuda.linear_dgrad(LinearDgrad {
            dx: Cuda::<E>::at_mut(&mut dx, 0..n),
            dy: all(&dy),
            w: all(&w),
            accumulate: self.accumulate,
            size,
        })
        .unwrap();
        let (dw, table) = (BEFORE..BEFORE + w.len(), 0..grads.len());
        cuda.linear_wgrad(LinearWgrad {
            grads: Cuda::<E>::at_mut(&mut grads, table),
            dw,
            dy: all(&dy),
            x: all(&x),
            size,
        })
        .unwrap();
        Answers { y: get_elems(cuda, &y), dx: get_elems(cuda, &dx), grads: get_f32(cuda, &grads) }
    }

    fn check<E: Element>(&self, cuda: &Cuda<E>) {
        let (got, exact) = (self.run(cuda), self.exact::<E>());
        let LinearSize { rows, inputs, outputs } = self.size;
        // Each addition of a sum in f32 rounds, as a random walk, and where outputs are few the sums may happen to be smaller
        // than their terms. Elements of bf16 are rounded once, which costs far more.
        let walk = |terms: usize| 4.0 + 2.0 * (terms as f64).sqrt();
        let times = |terms| if E::KIND == Kind::F32 { walk(terms) } else { 2.0 };
        close::<E>(&format!("y of {self:?}"), &got.y, &exact.y, times(inputs));
        close::<E>(&format!("dx of {self:?}"), &got.dx, &exact.dx, times(outputs));
        close_f32(&format!("dw of {self:?}"), &got.grads, &exact.grads, walk(rows));
        let around = |grads: &[f64]| [grads[..BEFORE].to_vec(), grads[BEFORE + inputs * outputs..].to_vec()];
        assert_eq!(around(&got.grads), around(&exact.grads), "gradients beside those of {self:?}");
    }
}

fn all<T: bytemuck::Pod + Send + Sync>(memory: &kernels::cuda::Memory<T>) -> kernels::cuda::View<'_, T> {
    Cuda::<f32>::at(memory, 0..memory.len())
}

fn sizes() -> impl Iterator<Item = Linear> {
    let columns = [(30, 64), (64, 2), (30, 2), (100, 192), (192, 100)];
    [1, 7, 33, 130].into_iter().flat_map(move |rows| {
        columns.into_iter().enumerate().map(move |(i, (inputs, outputs))| {
            Linear::new(rows, inputs, outputs, (i + rows) % 2 == 0, (i + rows / 2) % 2 == 0)
        })
    })
}

fn products<E: Element>() {
    let cuda = cuda::<E>();
    sizes().for_each(|linear| linear.check(&cuda));
}

#[test]
fn products_f32() {
    products::<f32>();
}

#[test]
fn products_bf16() {
    products::<bf16>();
}

#[test]
fn products_by_measurement() {
    let measured = Choosing::<bf16>::new();
    let cuda = &measured.cuda;
    for linear in [Linear::new(33, 30, 64, true, true), Linear::new(130, 100, 2, false, false)] {
        linear.check(cuda);
        linear.check(cuda);
    }
    assert_eq!(measured.text().lines().count(), 3 + 6);
}

#[test]
fn parts_of_a_table_that_are_not_aligned() {
    let cuda = cuda::<bf16>();
    let (rows, inputs, outputs) = (9, 16, 8);
    let size = LinearSize { rows, inputs, outputs };
    let table = rounded::<bf16>(&noise(1000, 5));
    let memory = put_elems(&cuda, &table);
    for start in [0, 1, 2, 5, 8] {
        let w = start..start + inputs * outputs;
        let bias = w.end + 1..w.end + 1 + outputs;
        let x = 400 + start..400 + start + rows * inputs;
        let mut y = poisoned::<bf16, bf16>(&cuda, 3 + rows * outputs);
        cuda.linear_forward(LinearForward {
            y: Cuda::<bf16>::at_mut(&mut y, 3..3 + rows * outputs),
            x: Cuda::<bf16>::at(&memory, x.clone()),
            w: Cuda::<bf16>::at(&memory, w.clone()),
            bias: Some(Cuda::<bf16>::at(&memory, bias.clone())),
            size,
        })
        .unwrap();
        let mut exact = vec![f64::NAN; rows * outputs];
        let (x, w, bias) = (&table[x], &table[w], Some(&table[bias]));
        Cpu::<f64>::new().linear_forward(LinearForward { y: &mut exact, x, w, bias, size }).unwrap();
        close::<bf16>(&format!("y from {start}"), &get_elems(&cuda, &y)[3..], &exact, 2.0);
    }
}

#[test]
fn nothing_to_multiply() {
    let cuda = cuda::<f32>();
    let w = put_elems(&cuda, &noise(12, 1));
    let empty = put_elems(&cuda, &[]);
    let mut none = put_elems::<f32>(&cuda, &[]);
    let mut grads = put_f32(&cuda, &noise(12, 2));
    let before = get(&cuda, &grads);
    let size = LinearSize { rows: 0, inputs: 4, outputs: 3 };
    let y = Cuda::<f32>::at_mut(&mut none, 0..0);
    cuda.linear_forward(LinearForward { y, x: all(&empty), w: all(&w), bias: None, size }).unwrap();
    let dx = Cuda::<f32>::at_mut(&mut none, 0..0);
    let dgrad = LinearDgrad { dx, dy: all(&empty), w: all(&w), accumulate: false, size };
    cuda.linear_dgrad(dgrad).unwrap();
    let table = Cuda::<f32>::at_mut(&mut grads, 0..12);
    let wgrad = LinearWgrad { grads: table, dw: 0..12, dy: all(&empty), x: all(&empty), size };
    cuda.linear_wgrad(wgrad).unwrap();
    same_bits("gradients", &get(&cuda, &grads), &before);
}

#[test]
fn wrong_lengths_are_errors() {
    let cuda = cuda::<f32>();
    let memory = put_elems(&cuda, &noise(100, 1));
    let mut out = put_elems::<f32>(&cuda, &noise(100, 1));
    let size = LinearSize { rows: 5, inputs: 4, outputs: 3 };
    let at = |len| Cuda::<f32>::at(&memory, 0..len);
    let lengths = [[14, 20, 12, 3], [15, 19, 12, 3], [15, 20, 11, 3], [15, 20, 12, 2]];
    for [y, x, w, bias] in lengths {
        let y = Cuda::<f32>::at_mut(&mut out, 0..y);
        let forward = LinearForward { y, x: at(x), w: at(w), bias: Some(at(bias)), size };
        assert!(cuda.linear_forward(forward).unwrap_err().to_string().starts_with("linear_forward: `"));
    }
    for (dw, len) in [(0..11, 100), (90..102, 100), (0..12, 11)] {
        let grads = Cuda::<f32>::at_mut(&mut out, 0..len);
        let wgrad = LinearWgrad { grads, dw, dy: at(15), x: at(20), size };
        assert!(cuda.linear_wgrad(wgrad).unwrap_err().to_string().starts_with("linear_wgrad: `"));
    }
}

/// A backend that chooses by measuring, and the file that it keeps its choices in.
pub struct Choosing<E> {
    pub cuda: Cuda<E>,
    dir: tempfile::TempDir,
}

impl<E: Element> Choosing<E> {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { choices: vec![dir.path().join("products.txt")], ..Options::default() };
        Self { cuda: Cuda::new(device(), options).unwrap(), dir }
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("products.txt")).unwrap()
    }
}

/// A backend that finds these choices, and what it says of them.
pub fn given<E: Element>(text: &str) -> (Cuda<E>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("products.txt");
    std::fs::write(&file, text).unwrap();
    let cuda =
        Cuda::new(device(), Options { measure: false, choices: vec![file], ..Options::default() }).unwrap();
    let said = cuda.remarks(64).concat();
    (cuda, said)
}

#[test]
fn choices_are_kept() {
    let measured = Choosing::<bf16>::new();
    let linear = Linear::new(130, 64, 192, true, true);
    let first = linear.run(&measured.cuda);
    let text = measured.text();
    assert_eq!(text.lines().count(), 3 + 3);
    let (again, said) = given::<bf16>(&text);
    assert_eq!(said, "");
    let second = linear.run(&again);
    same_bits("y", &first.y, &second.y);
    same_bits("dx", &first.dx, &second.dx);
    same_bits("gradients", &first.grads, &second.grads);
    // Another number of rows in the same bucket has the same algorithm, and nothing is measured for it.
    Linear::new(150, 64, 192, true, true).check(&measured.cuda);
    assert_eq!(measured.text(), text);
    Linear::new(190, 64, 192, true, true).check(&measured.cuda);
    assert_ne!(measured.text(), text);
}

#[test]
fn the_first_file_counts_and_all_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let files = [dir.path().join("run/products.txt"), dir.path().join("cache/products.txt")];
    let open = || {
        let options = Options { choices: files.to_vec(), ..Options::default() };
        Cuda::<bf16>::new(device(), options).unwrap()
    };
    let texts = || [0, 1].map(|i| std::fs::read_to_string(&files[i]).unwrap());
    let linear = Linear::new(130, 64, 192, true, true);
    linear.run(&open());
    let [text, other] = texts();
    assert_eq!(text, other);
    // Where the first is gone or damaged the second is taken: nothing is measured, so nothing is written.
    std::fs::remove_file(&files[0]).unwrap();
    linear.run(&open());
    assert!(!files[0].exists());
    std::fs::write(&files[0], "nonsense").unwrap();
    let cuda = open();
    linear.run(&cuda);
    let told = cuda.remarks(64).concat();
    assert!(told.contains("run/products.txt: ") && told.contains("damaged"), "{told}");
    assert!(cuda.remarks(64).is_empty(), "told twice");
    Linear::new(7, 64, 192, true, true).run(&cuda);
    let [text, other] = texts();
    assert_eq!(text, other);
    assert_eq!(text.lines().count(), 3 + 6);
    // A folder that cannot be made: training goes on, and the user hears of it.
    let blocked = vec![files[0].join("below a file/products.txt")];
    let cuda = Cuda::<bf16>::new(device(), Options { choices: blocked, ..Options::default() }).unwrap();
    linear.run(&cuda);
    assert!(cuda.remarks(64).concat().contains("cannot be written"));
}

#[test]
fn choices_decide_the_algorithm() {
    let measured = Choosing::<f32>::new();
    let linear = Linear::new(33, 192, 64, false, false);
    linear.check(&measured.cuda);
    // Where another algorithm is chosen, another order of sums may show; on the emulator every algorithm has its own.
    if !is_emulated(&measured.cuda) {
        return;
    }
    let mut answers = Vec::new();
    for id in 0..8 {
        let (cuda, said) = given::<f32>(&with_algorithm(&measured.text(), id));
        assert_eq!(said, "");
        let y = linear.run(&cuda).y;
        same_bits("a rerun", &y, &linear.run(&cuda).y);
        answers.push(y);
    }
    let different = |i: usize| answers.iter().filter(|y| **y != answers[i]).count();
    assert!((0..8).any(|i| different(i) > 0), "no choice changed a bit");
}

#[test]
fn foreign_choices_are_passed_over() {
    let measured = Choosing::<f32>::new();
    let linear = Linear::new(7, 30, 64, true, false);
    linear.run(&measured.cuda);
    let text = measured.text();
    for bad in ["", "nonsense", &text[..text.len() / 2], &text.replacen("cuBLASLt ", "cuBLASLt 9", 2)] {
        let (cuda, said) = given::<f32>(bad);
        assert!(said.contains("is damaged; algorithms are chosen anew"), "{said}");
        linear.check(&cuda);
    }
    let (_, said) = given::<f32>(&sealed(&text.replacen("machine ", "machine another ", 1)));
    assert!(said.contains("another machine"), "{said}");
    // Bytes that are no algorithm of cuBLASLt: it refuses them, and the heuristic's answer is taken.
    let (cuda, said) = given::<f32>(&sealed(&text.lines().map(no_algorithm).collect::<Vec<_>>().join("\n")));
    assert_eq!(said, "");
    linear.check(&cuda);
}

/// A line with an algorithm of zeros.
fn no_algorithm(line: &str) -> String {
    match line.split_once(": ") {
        Some((product, _)) => format!("{product}: cublaslt 0 0 0 0 0 0 0 0"),
        None => line.into(),
    }
}

/// The emulator's algorithm of that number in every line.
fn with_algorithm(text: &str, id: u64) -> String {
    let change = |line: &str| {
        let Some((product, words)) = line.split_once(": cublaslt ") else { return line.to_owned() };
        let old: Vec<_> = words.split(' ').map(|w| u64::from_str_radix(w, 16).unwrap()).collect();
        let new = (0..8).map(|i| match i {
            0 | 2 => old[i],
            1 => id,
            _ => old[2].wrapping_mul(id + i as u64),
        });
        format!("{product}: cublaslt {}", new.map(|w| format!("{w:x}")).collect::<Vec<_>>().join(" "))
    };
    sealed(&text.lines().map(change).collect::<Vec<_>>().join("\n"))
}

/// The text with the checksum that belongs to it.
pub fn sealed(text: &str) -> String {
    let body = format!("{}\n", text.trim_end().rsplit_once("\nsum ").unwrap().0);
    let sum = body
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{body}sum {sum:016x}\n")
}
