//! The words of the generated sentences.

use super::Split;
use crate::rng::SplitMix64;

/// What a split draws from.
pub(super) struct Pools {
    pub(super) first_names: &'static [&'static str],
    pub(super) last_names: &'static [&'static str],
    pub(super) companies: &'static [&'static str],
    pub(super) forms: &'static [&'static str],
    /// Whether half of all names are invented: a model that has seen only the listed ones completes them
    /// from memory instead of copying the sentence.
    pub(super) invents: bool,
}

impl Pools {
    /// A name out of `listed`, or an invented one.
    pub(super) fn name(&self, listed: &[&str], rng: &mut SplitMix64) -> String {
        if self.invents && rng.below(2) == 0 {
            invented(rng)
        } else {
            (*rng.pick(listed)).to_owned()
        }
    }
}

/// Two or three syllables that are no name of the test split.
fn invented(rng: &mut SplitMix64) -> String {
    loop {
        let syllables = 2 + rng.below(2);
        let mut word = String::new();
        for _ in 0..syllables {
            word += *rng.pick(&ONSETS[..]);
            word += *rng.pick(&VOWELS[..]);
        }
        word += *rng.pick(&CODAS[..]);
        word[..1].make_ascii_uppercase();
        let taken = [TEST.first_names, TEST.last_names, TEST.companies].concat();
        if !taken.contains(&word.as_str()) {
            return word;
        }
    }
}

const ONSETS: [&str; 20] = [
    "b", "br", "c", "d", "f", "g", "gl", "h", "j", "k", "l", "m", "n", "p", "ph", "r", "s", "st",
    "t", "v",
];
const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ea", "ou"];
const CODAS: [&str; 10] = ["", "", "n", "r", "s", "l", "ck", "th", "ng", "x"];

pub(super) fn pools(split: Split) -> &'static Pools {
    match split {
        Split::Train => &TRAIN,
        Split::Test => &TEST,
    }
}

const TRAIN: Pools = Pools {
    first_names: &[
        "Ana", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas",
        "Karen", "Liam", "Maria", "Nina", "Oscar", "Paula", "Quentin", "Rosa", "Simon", "Tara",
        "Umar", "Vera", "Walter", "Xenia", "Yusuf", "Zoe", "Amir", "Bianca", "Cedric", "Diana",
        "Emil", "Fatima", "George", "Hannah", "Ivan", "Julia", "Kevin", "Laura", "Marco", "Nadia",
    ],
    last_names: &[
        "Silva", "Brown", "Costa", "Dubois", "Evans", "Fischer", "Garcia", "Hughes", "Ivanov",
        "Jensen", "Khan", "Lopez", "Miller", "Novak", "Olsen", "Peters", "Quinn", "Rossi",
        "Schmidt", "Taylor", "Usman", "Vogel", "Walker", "Young", "Zhang", "Adams", "Becker",
        "Clark", "Diaz", "Edwards", "Foster", "Green", "Hansen", "Jones", "Klein", "Larsen",
        "Moreau", "Nguyen", "Ortiz", "Patel",
    ],
    companies: &[
        "Brill", "Acorn", "Beacon", "Cedar", "Delta", "Ember", "Falcon", "Granite", "Harbor",
        "Indigo", "Juniper", "Kestrel", "Lantern", "Meadow", "Nimbus", "Orchid", "Pioneer",
        "Quartz", "River", "Summit", "Tulip", "Union", "Velvet", "Willow", "Zenith", "Amber",
        "Bridge", "Copper", "Dawn", "Eagle", "Forest", "Golden", "Horizon", "Iron", "Jasper",
        "Lotus", "Marble", "North", "Ocean", "Prime",
    ],
    forms: &[
        "On {date} {name} paid {money} to {company}.",
        "{name} paid {company} {money} on {date}.",
        "{company} received {money} from {name} on {date}.",
        "Payment of {money} by {name} to {company}, {date}.",
        "{date}: {name} sent {money} to {company}.",
        "{name} settled a bill of {money} from {company} on {date}.",
        "{company} confirms that {name} transferred {money} on {date}.",
        "{name} ordered {item} for {money} from {company} on {date}.",
        "On {date} {company} shipped an order worth {money} to {name}.",
        "Order of {date}: {name} buys {item} from {company}, total {money}.",
        "{company} sold {item} to {name} for {money} on {date}.",
        "For {money}, {name} bought {item} at {company} on {date}.",
        "{name} booked a room with {company} for {money} on {date}.",
        "Booking by {name} on {date} with {company} costs {money}.",
        "{company} charged {name} {money} on {date} for a booking.",
        "On {date}, {name} reserved a table through {company}, price {money}.",
        "Receipt from {company}: {name}, {money}, {date}.",
        "{name} left {company} a deposit of {money} on {date}.",
    ],
    invents: true,
};

const TEST: Pools = Pools {
    first_names: &[
        "Adele", "Boris", "Chloe", "Dylan", "Esther", "Frank", "Gloria", "Henry", "Isabel", "Jack",
        "Kira", "Leo", "Monica", "Noah", "Olga", "Peter",
    ],
    last_names: &[
        "Abbott", "Berg", "Cooper", "Duarte", "Ellis", "Ferrari", "Gomez", "Hill", "Ito", "Jacobs",
        "Keller", "Lewis", "Martin", "Nelson", "Owens", "Parker",
    ],
    companies: &[
        "Anchor", "Birch", "Comet", "Dolphin", "Everest", "Fountain", "Glacier", "Hazel", "Island",
        "Jade", "Liberty", "Maple", "Nova", "Oasis", "Phoenix", "Raven",
    ],
    forms: &[
        "{company} was paid {money} by {name} on {date}.",
        "{date}: order by {name} at {company} for {money}.",
        "{name} made a booking with {company} on {date} and paid {money}.",
        "A transfer of {money} from {name} reached {company} on {date}.",
        "On {date} {company} billed {name} {money} for {item}.",
        "{name}, a customer of {company}, spent {money} on {date}.",
    ],
    invents: false,
};

pub(super) const SUFFIXES: [&str; 6] = ["Ltd", "Inc", "Group", "Co", "Partners", "Trading"];

/// Codes, and how a price is written with the symbol.
pub(super) const CURRENCIES: [(&str, &str); 3] = [("EUR", "€"), ("USD", "$"), ("GBP", "£")];

pub(super) const ITEMS: [&str; 8] = [
    "a lamp",
    "two chairs",
    "a laptop",
    "some books",
    "a bicycle",
    "new shoes",
    "a printer",
    "a camera",
];

pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
