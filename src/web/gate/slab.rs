//! Connections by number: a number is never of two connections, so that what comes too late meets nothing.

/// Names one connection for all time, or near enough: a place is used four thousand million times before that repeats.
pub(super) type Key = u64;

/// Places, each with how often it was taken, and what is there now.
pub(super) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<usize>,
}

/// Bits of a key that say which place; of those that tell its lives apart, two are left for the gate's own use.
const PLACE: u32 = 24;

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, value: T) -> Key {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() - 1
        });
        let (life, slot) = &mut self.places[place];
        *slot = Some(value);
        u64::from(*life) << PLACE | place as u64
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (life, slot) = self.places.get(place(key))?;
        slot.as_ref().filter(|_| is(*life, key))
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (life, slot) = self.places.get_mut(place(key))?;
        slot.as_mut().filter(|_| is(*life, key))
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (life, slot) = self.places.get_mut(place(key))?;
        let value = if is(*life, key) { slot.take() } else { None }?;
        *life = life.wrapping_add(1);
        self.free.push(place(key));
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(place, (life, slot))| {
            Some((u64::from(*life) << PLACE | place as u64, slot.as_ref()?))
        })
    }
}

fn place(key: Key) -> usize {
    // Of 24 bits.
    (key & ((1 << PLACE) - 1)) as usize
}

fn is(life: u32, key: Key) -> bool {
    key >> PLACE == u64::from(life)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_nothing_else_later() {
        let mut slab = Slab::new();
        let (one, two) = (slab.insert(1), slab.insert(2));
        assert_eq!(slab.remove(one), Some(1));
        let three = slab.insert(3);
        assert_ne!(one, three);
        assert_eq!(slab.get(one), None);
        assert_eq!(slab.remove(one), None);
        assert_eq!((slab.get(two), slab.get(three), slab.len()), (Some(&2), Some(&3), 2));
        assert_eq!(slab.iter().map(|(key, _)| key).collect::<Vec<_>>(), [three, two]);
    }
}
