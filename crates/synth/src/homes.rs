//! Where people live, and how that is written down.

use crate::calendar::push_padded;
use crate::dice::Dice;
use crate::encode::push_number;
use crate::number;
use crate::world::{CITIES, City};

const STREETS: [&str; 24] = [
    "人民路",
    "中山路",
    "解放路",
    "建设路",
    "和平路",
    "新华路",
    "文化路",
    "胜利路",
    "长江路",
    "黄河路",
    "友谊路",
    "青年路",
    "花园路",
    "学院路",
    "体育路",
    "公园路",
    "滨河路",
    "迎宾大道",
    "朝阳街",
    "光明街",
    "幸福巷",
    "东风路",
    "北京路",
    "南京路",
];

/// An address, down to the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) city: u8,
    district: u8,
    street: u8,
    building: u8,
    unit: u8,
    number: u16,
    room: u16,
}

/// How somebody wrote an address down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressStyle {
    /// 中山路88号3号楼2单元502室
    Full,
    /// 中山路88号3-2-502
    Dashes,
    /// 中山路 88 号 3 栋 2 单元 502
    Spaces,
}

impl AddressStyle {
    /// The style that belongs to some random bits.
    pub(crate) fn of(bits: u64) -> Self {
        match bits % 10 {
            0..=5 => Self::Full,
            6..=8 => Self::Dashes,
            _ => Self::Spaces,
        }
    }
}

impl Home {
    pub(crate) fn draw(dice: &mut Dice, city: u8, district: u8) -> Self {
        let below = |dice: &mut Dice, bound: u64| number::low8(dice.below(bound));
        Self {
            city,
            district,
            street: below(dice, STREETS.len() as u64),
            building: 1 + below(dice, 18),
            unit: 1 + below(dice, 4),
            number: 1 + u16::try_from(dice.below(300)).unwrap_or(0),
            room: u16::from(1 + below(dice, 28)) * 100 + u16::from(1 + below(dice, 4)),
        }
    }

    /// Another home, more often than not in another city.
    pub(crate) fn draw_next(&self, dice: &mut Dice) -> Self {
        let city = if dice.chance(0.55) { draw_city(dice) } else { self.city };
        let district = (self.district + 1 + number::low8(dice.below(2))) % 3;
        Self::draw(dice, city, district)
    }

    pub(crate) fn place(&self) -> &'static City {
        &CITIES[usize::from(self.city)]
    }

    pub(crate) fn district(&self) -> &'static str {
        self.place().districts[usize::from(self.district)]
    }

    /// What follows the district in an address.
    pub(crate) fn push_line(&self, out: &mut Vec<u8>, style: AddressStyle) {
        let (space, names) = match style {
            AddressStyle::Full => ("", ["号", "号楼", "单元", "室"]),
            AddressStyle::Dashes => ("", ["号", "-", "-", ""]),
            AddressStyle::Spaces => (" ", ["号", "栋", "单元", ""]),
        };
        out.extend_from_slice(STREETS[usize::from(self.street)].as_bytes());
        let parts = [self.number, u16::from(self.building), u16::from(self.unit), self.room];
        for (part, name) in parts.into_iter().zip(names) {
            out.extend_from_slice(space.as_bytes());
            push_number(out, i64::from(part));
            if !name.is_empty() {
                out.extend_from_slice(space.as_bytes());
                out.extend_from_slice(name.as_bytes());
            }
        }
    }
}

pub(crate) fn draw_city(dice: &mut Dice) -> u8 {
    number::low8(dice.weighted(&CITIES.map(|city| city.weight)) as u64)
}

/// The fixed telephone of a home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Landline {
    area_code: &'static str,
    number: u32,
}

impl Landline {
    /// Bits that number the telephones behind one area code.
    pub(crate) const BITS: u32 = 23;

    /// None where the city's numbers are of another length.
    pub(crate) fn new(home: &Home, scrambled: u64) -> Option<Self> {
        let area_code = home.place().area_code?;
        Some(Self { area_code, number: 60_000_000 + number::low32(scrambled) })
    }

    /// As it was written down by somebody with these habits.
    pub(crate) fn push(&self, out: &mut Vec<u8>, habits: u64) {
        let (before, between) = match habits % 8 {
            0..=4 => ("", "-"),
            5 => ("", " "),
            6 => ("", ""),
            _ => ("86-", "-"),
        };
        out.extend_from_slice(before.as_bytes());
        let area_code = if before.is_empty() { self.area_code } else { &self.area_code[1..] };
        out.extend_from_slice(area_code.as_bytes());
        out.extend_from_slice(between.as_bytes());
        push_padded(out, i64::from(self.number), 8);
    }

    pub(crate) fn push_canonical(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"+86");
        out.extend_from_slice(&self.area_code.as_bytes()[1..]);
        push_padded(out, i64::from(self.number), 8);
    }
}
