//! The machine that a pickle is a program for.

use super::{Class, Object, Pickle, Storage, Tensor, Value};
use std::collections::HashMap;

/// Most values of one pickle: a checkpoint of BERT-large with an optimizer has some ten thousand.
const MAX_OBJECTS: usize = 1 << 20;
/// Most sizes of a tensor.
const MAX_RANK: usize = 64;
/// The longest name of a storage; PyTorch's are numbers. Each tensor has a copy.
const MAX_KEY: usize = 64;
/// Most tensors: a BERT-large with an optimizer has some thousand.
const MAX_TENSORS: usize = 1 << 16;

pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
    objects: Vec<Object<'a>>,
    /// Values that calls may still copy from one container to another, so that a short pickle cannot ask for much.
    copies_left: usize,
    tensors: usize,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            objects: Vec::new(),
            copies_left: MAX_OBJECTS,
            tensors: 0,
        }
    }

    /// Runs to the end of the program.
    pub(super) fn run(mut self) -> Step<Pickle<'a>> {
        loop {
            let at = self.at;
            let opcode = self.take(1)?[0];
            if opcode == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { objects: self.objects, root, bytes: self.at });
            }
            self.step(opcode).map_err(|what| format!("{what}, at byte {at} of a pickle"))?;
        }
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("the pickle is cut short at byte {}", self.bytes.len()))?;
        self.at += count;
        Ok(taken)
    }

    /// A little-endian number of 1 to 8 bytes.
    fn number(&mut self, bytes: usize) -> Step<usize> {
        let number = self.take(bytes)?.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        usize::try_from(number).map_err(|_| format!("a length of {number}"))
    }

    /// What a line holds, without its end.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let line = self.take(length)?;
        self.take(1)?;
        str::from_utf8(line).map_err(|_| "a name is not UTF-8".to_owned())
    }

    fn text(&mut self, length_bytes: usize) -> Step<()> {
        let length = self.number(length_bytes)?;
        let text = str::from_utf8(self.take(length)?).map_err(|_| "a text is not UTF-8".to_owned())?;
        self.push_object(Object::Text(text))
    }

    fn raw(&mut self, length_bytes: usize) -> Step<()> {
        let length = self.number(length_bytes)?;
        let raw = self.take(length)?;
        self.push_object(Object::Bytes(raw))
    }

    /// Python 2's strings: text where they are UTF-8.
    fn string(&mut self, length_bytes: usize) -> Step<()> {
        let length = self.number(length_bytes)?;
        let raw = self.take(length)?;
        self.push_object(str::from_utf8(raw).map_or(Object::Bytes(raw), Object::Text))
    }

    fn long(&mut self, length_bytes: usize) -> Step<()> {
        let length = self.number(length_bytes)?;
        let raw = self.take(length)?;
        if raw.len() > 8 {
            return self.push_object(Object::Long(raw));
        }
        let negative = raw.last().is_some_and(|&byte| byte >= 0x80);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..raw.len()].copy_from_slice(raw);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }

    fn push(&mut self, value: Value) -> Step<()> {
        if self.stack.len() == MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} values on the stack"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn push_object(&mut self, object: Object<'a>) -> Step<()> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} values"));
        }
        self.objects.push(object);
        self.push(Value::Object(self.objects.len() - 1))
    }

    /// The top of the stack, above the last mark.
    fn pop(&mut self) -> Step<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| "the stack is empty".to_owned()),
            false => Err("the stack is empty".to_owned()),
        }
    }

    fn top(&self) -> Step<Value> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".to_owned())
    }

    /// All values above the last mark, which goes.
    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Value>> {
        let mut values = (0..count).map(|_| self.pop()).collect::<Step<Vec<_>>>()?;
        values.reverse();
        Ok(values)
    }

    fn memoize(&mut self, key: usize) -> Step<()> {
        if self.memo.len() == MAX_OBJECTS {
            return Err(format!("more than {MAX_OBJECTS} values in the memo"));
        }
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Step<()> {
        let value = *self.memo.get(&key).ok_or_else(|| format!("value {key} is not in the memo"))?;
        self.push(value)
    }

    fn get(&self, value: Value) -> Option<&Object<'a>> {
        match value {
            Value::Object(number) => self.objects.get(number),
            _ => None,
        }
    }

    fn get_mut(&mut self, value: Value) -> Option<&mut Object<'a>> {
        match value {
            Value::Object(number) => self.objects.get_mut(number),
            _ => None,
        }
    }

    fn append(&mut self, values: Vec<Value>) -> Step<()> {
        let list = self.top()?;
        match self.get_mut(list) {
            Some(Object::List(list)) => list.extend(values),
            _ => return Err("values are added to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set_items(&mut self, values: &[Value]) -> Step<()> {
        let dict = self.top()?;
        match (self.get_mut(dict), values.as_chunks()) {
            (Some(Object::Dict(dict)), (pairs, [])) => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)))
            }
            _ => return Err("keys and values are added to what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            0x80 => match self.take(1)?[0] {
                2..=5 => Ok(()),
                other => Err(format!("protocol {other}; 2 to 5 are known")),
            },
            0x95 => self.take(8).map(drop),
            b'(' => {
                if self.marks.len() == MAX_OBJECTS {
                    return Err(format!("more than {MAX_OBJECTS} marks"));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let number = self.number(4)?;
                self.push(Value::Int(i64::from(number as u32 as i32)))
            }
            b'K' => self.number(1).and_then(|n| self.push(Value::Int(n as i64))),
            b'M' => self.number(2).and_then(|n| self.push(Value::Int(n as i64))),
            0x8a => self.long(1),
            0x8b => self.long(4),
            b'G' => {
                let bits = self.take(8)?.iter().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
                self.push(Value::Float(f64::from_bits(bits)))
            }
            b'X' => self.text(4),
            0x8c => self.text(1),
            0x8d => self.text(8),
            b'T' => self.string(4),
            b'U' => self.string(1),
            b'B' => self.raw(4),
            b'C' => self.raw(1),
            0x8e => self.raw(8),
            _ => self.step_container(opcode),
        }
    }

    fn step_container(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b')' => self.push_object(Object::Tuple(Vec::new())),
            0x85..=0x87 => {
                let values = self.pop_many(usize::from(opcode - 0x84))?;
                self.push_object(Object::Tuple(values))
            }
            b't' => self.pop_mark().and_then(|values| self.push_object(Object::Tuple(values))),
            b']' | 0x8f => self.push_object(Object::List(Vec::new())),
            b'l' | 0x91 => self.pop_mark().and_then(|values| self.push_object(Object::List(values))),
            b'a' => self.pop().and_then(|value| self.append(vec![value])),
            b'e' | 0x90 => self.pop_mark().and_then(|values| self.append(values)),
            b'}' => self.push_object(Object::Dict(Vec::new())),
            b'd' => {
                let values = self.pop_mark()?;
                self.push_object(Object::Dict(Vec::new()))?;
                self.set_items(&values)
            }
            b's' => self.pop_many(2).and_then(|values| self.set_items(&values)),
            b'u' => self.pop_mark().and_then(|values| self.set_items(&values)),
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => self.top().and_then(|value| self.push(value)),
            b'q' => self.number(1).and_then(|key| self.memoize(key)),
            b'r' => self.number(4).and_then(|key| self.memoize(key)),
            0x94 => self.memoize(self.memo.len()),
            b'h' => self.number(1).and_then(|key| self.recall(key)),
            b'j' => self.number(4).and_then(|key| self.recall(key)),
            _ => self.step_call(opcode),
        }
    }

    fn step_call(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let names = [names[0], names[1]].map(|name| match self.get(name) {
                    Some(Object::Text(text)) => Some(*text),
                    _ => None,
                });
                match names {
                    [Some(module), Some(name)] => self.global(module, name),
                    _ => Err("a function's name is no text".to_owned()),
                }
            }
            b'R' | 0x81 => {
                let values = self.pop_many(2)?;
                let result = self.call(values[0], values[1])?;
                self.tensors += usize::from(matches!(result, Object::Tensor(_)));
                if self.tensors > MAX_TENSORS {
                    return Err(format!("more than {MAX_TENSORS} tensors"));
                }
                self.push_object(result)
            }
            // An object's attributes: of a dictionary or a tensor they are metadata.
            b'b' => {
                self.pop()?;
                let target = self.top()?;
                match self.get(target) {
                    Some(Object::Dict(_) | Object::List(_) | Object::Tensor(_) | Object::Opaque) => Ok(()),
                    _ => Err("attributes are set on what has none".to_owned()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push_object(Object::Storage(storage))
            }
            other => Err(format!("the opcode {other:#04x} is not known")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        match Class::find(module, name) {
            Some(class) => self.push_object(Object::Class(class)),
            None => {
                let shown =
                    |text: &str| text.chars().take(80).collect::<String>().escape_default().to_string();
                Err(format!(
                    "it asks for {}.{}, which is not on the list of functions that only build tensors and containers",
                    shown(module),
                    shown(name)
                ))
            }
        }
    }

    fn tuple(&self, value: Value) -> Step<&[Value]> {
        match self.get(value) {
            Some(Object::Tuple(values)) => Ok(values),
            _ => Err("a tuple is expected".to_owned()),
        }
    }

    /// A size, stride, offset or count.
    fn size(value: Value) -> Step<u64> {
        match value {
            Value::Int(n) => u64::try_from(n).map_err(|_| format!("{n} where a size is expected")),
            other => Err(format!("{other:?} where a size is expected")),
        }
    }

    fn sizes(&self, value: Value) -> Step<Vec<usize>> {
        let size = |&value| Self::size(value).and_then(|n| usize::try_from(n).map_err(|e| e.to_string()));
        self.tuple(value)?.iter().map(size).collect()
    }

    /// What a call of a known function gives.
    fn call(&mut self, function: Value, arguments: Value) -> Step<Object<'a>> {
        let Some(Object::Class(class)) = self.get(function) else {
            return Err("a call of what is no function".to_owned());
        };
        let arguments = self.tuple(arguments)?;
        let first = arguments.first().map(|&value| self.get(value));
        let copied = match first {
            Some(Some(Object::List(values) | Object::Tuple(values))) => values.len(),
            _ => 0,
        };
        let result = match (class, first) {
            (Class::Dict, None | Some(Some(Object::Class(_)))) => Object::Dict(Vec::new()),
            (Class::Dict, Some(Some(Object::List(pairs)))) if copied <= self.copies_left => {
                Object::Dict(pairs.iter().map(|&pair| self.pair(pair)).collect::<Step<_>>()?)
            }
            (Class::List, None) => Object::List(Vec::new()),
            (Class::List, Some(Some(Object::List(values)))) if copied <= self.copies_left => {
                Object::List(values.clone())
            }
            (Class::Size, Some(Some(Object::Tuple(values)))) if copied <= self.copies_left => {
                Object::Tuple(values.clone())
            }
            (Class::Opaque, _) => Object::Opaque,
            (Class::RebuildTensor, Some(Some(Object::Storage(storage)))) => {
                self.tensor(storage, arguments)?
            }
            (Class::RebuildParameter, Some(Some(Object::Tensor(tensor)))) => Object::Tensor(tensor.clone()),
            (class, _) => return Err(format!("{class:?} is called with arguments that it does not take")),
        };
        self.copies_left = self.copies_left.saturating_sub(copied);
        Ok(result)
    }

    /// Key and value.
    fn pair(&self, pair: Value) -> Step<(Value, Value)> {
        match self.get(pair) {
            Some(Object::Tuple(pair) | Object::List(pair)) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err("a dictionary is made from what are no pairs".to_owned()),
        }
    }

    /// `(storage, offset, sizes, strides, …)`; what follows is about gradients.
    fn tensor(&self, storage: &Storage<'a>, arguments: &[Value]) -> Step<Object<'a>> {
        let [_, offset, shape, strides, ..] = *arguments else {
            return Err(format!("a tensor is made from {} arguments", arguments.len()));
        };
        let ranks = [self.tuple(shape)?.len(), self.tuple(strides)?.len()];
        if ranks[0] != ranks[1] || ranks[0] > MAX_RANK {
            let [sizes, strides] = ranks;
            return Err(format!(
                "a tensor has {sizes} sizes and {strides} strides, expected as many, {MAX_RANK} at most"
            ));
        }
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        Ok(Object::Tensor(Tensor { storage: storage.clone(), offset: Self::size(offset)?, shape, strides }))
    }

    /// `("storage", type, key, device, elements)`, in the old layout with a view: none or `(key, start, elements)`.
    fn storage(&self, id: Value) -> Step<Storage<'a>> {
        let fields = self.tuple(id)?;
        let object = |i: usize| fields.get(i).and_then(|&value| self.get(value));
        let (
            Some(Object::Text("storage")),
            Some(Object::Class(Class::Storage(dtype))),
            Some(Object::Text(key)),
        ) = (object(0), object(1), object(2))
        else {
            return Err("a storage that is not named as PyTorch names them".to_owned());
        };
        if key.len() > MAX_KEY {
            return Err(format!("a storage's key of {} bytes, at most {MAX_KEY} are known", key.len()));
        }
        let start = match object(5) {
            None => 0,
            Some(Object::Tuple(view)) if view.len() == 3 => Self::size(view[1])?,
            Some(_) => return Err("a view of a storage that is no tuple of three".to_owned()),
        };
        Ok(Storage { key, dtype: dtype.clone(), start })
    }
}
