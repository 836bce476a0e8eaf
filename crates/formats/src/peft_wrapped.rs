//! An adapter's config over a model of which the decoder is one part, and back.

use backdraft_arch::{ModulePattern, TargetModule, TokenTable};

use crate::peft_config::{PeftConfig, TargetModules};
use crate::wrapped::{AdapterPrefix, decoder_name, is_wrapped};

/// Names alone would take projections of towers too, which have the same ones.
const LAYERS: &str = r"(?:model\.language_model|language_model\.model)\.layers\.";
const EVERY_LAYER: &str = r"\d+";
const BLOCKS: &str = r"\.(?:self_attn|linear_attn|mlp)\.";
/// The tables of tokens, which have no layer.
const TABLES: [(TokenTable, &str); 2] = [
    (
        TokenTable::Embedding,
        r"|(?:model\.language_model|language_model\.model)\.embed_tokens",
    ),
    (TokenTable::Head, r"|(?:language_model\.)?lm_head"),
];

impl PeftConfig {
    /// The config by the names of a class.
    pub(crate) fn under(&self, prefix: AdapterPrefix) -> Self {
        if prefix == AdapterPrefix::Text {
            return self.clone();
        }
        let renamed = |name: &String| prefix.name(name);
        let (target_modules, layers_to_transform) = match &self.target_modules {
            TargetModules::Names(names)
                if names.iter().all(|name| is_bare(name) || is_table(name)) =>
            {
                let layers = self.layers_to_transform.as_deref();
                (TargetModules::Pattern(pattern(names, layers)), None)
            }
            TargetModules::Names(names) => (
                TargetModules::Names(names.iter().map(renamed).collect()),
                self.layers_to_transform.clone(),
            ),
            other => (other.clone(), self.layers_to_transform.clone()),
        };
        Self {
            target_modules,
            layers_to_transform,
            rank_pattern: paths(&self.rank_pattern, |key| prefix.name(key)),
            alpha_pattern: paths(&self.alpha_pattern, |key| prefix.name(key)),
            modules_to_save: self.modules_to_save.iter().map(renamed).collect(),
            ..self.clone()
        }
    }

    /// The config by the names of a decoder alone.
    pub(crate) fn of_decoder(mut self) -> Self {
        if let TargetModules::Pattern(pattern) = &self.target_modules
            && let Some((names, layers)) = read_pattern(pattern)
        {
            self.target_modules = TargetModules::Names(names);
            self.layers_to_transform = layers;
        }
        if let TargetModules::Names(names) = &mut self.target_modules {
            for name in names {
                if let Some(own) = decoder_name(name).filter(|_| is_wrapped(name)) {
                    *name = own;
                }
            }
        }
        for name in &mut self.modules_to_save {
            if let Some(own) = decoder_name(name).filter(|_| is_wrapped(name)) {
                *name = own;
            }
        }
        self.rank_pattern = paths(&self.rank_pattern, own_pattern);
        self.alpha_pattern = paths(&self.alpha_pattern, own_pattern);
        self
    }
}

/// Whether a name is that of a projection, without any of its path.
fn is_bare(name: &str) -> bool {
    TargetModule::NAMES.contains(&name)
}

/// Whether it is that of a table of tokens.
fn is_table(name: &str) -> bool {
    TokenTable::of_name(name).is_some()
}

fn pattern(names: &[String], layers: Option<&[usize]>) -> String {
    let layers = layers.map_or_else(
        || EVERY_LAYER.to_owned(),
        |layers| {
            let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
            format!("(?:{})", layers.join("|"))
        },
    );
    let projections: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| is_bare(name))
        .collect();
    let named = |table: &TokenTable| {
        names
            .iter()
            .any(|name| TokenTable::of_name(name) == Some(*table))
    };
    let tables = TABLES
        .iter()
        .filter(|(table, _)| named(table))
        .map(|(_, pattern)| *pattern);
    let tables: String = tables.collect();
    match &projections[..] {
        [] => tables.trim_start_matches('|').to_owned(),
        projections => format!(
            "{LAYERS}{layers}{BLOCKS}(?:{}){tables}",
            projections.join("|")
        ),
    }
}

/// Names and layers of what [`pattern`] writes.
fn read_pattern(pattern: &str) -> Option<(Vec<String>, Option<Vec<usize>>)> {
    let among = |group: &str| {
        let inner = group.strip_prefix("(?:")?.strip_suffix(')')?;
        Some(inner.split('|').map(str::to_owned).collect::<Vec<_>>())
    };
    let (mut pattern, mut tables) = (pattern, Vec::new());
    for (table, end) in TABLES.iter().rev() {
        let without = pattern.strip_suffix(end).or_else(|| {
            let all = pattern == end.trim_start_matches('|');
            all.then_some("")
        });
        if let Some(before) = without {
            pattern = before;
            tables.insert(0, *table);
        }
    }
    if pattern.is_empty() && !tables.is_empty() {
        return Some((
            tables.iter().map(|table| table.name().to_owned()).collect(),
            None,
        ));
    }
    let (layers, names) = pattern.strip_prefix(LAYERS)?.split_once(BLOCKS)?;
    let mut names = among(names).filter(|names| names.iter().all(|name| is_bare(name)))?;
    let layers = match layers {
        EVERY_LAYER => None,
        some => {
            let layers = among(some)?;
            Some(
                layers
                    .iter()
                    .map(|layer| layer.parse().ok())
                    .collect::<Option<_>>()?,
            )
        }
    };
    // A name alone is one in a layer, where layers are chosen.
    let name = |table: &TokenTable| match layers.is_some() {
        true => table.path().to_owned(),
        false => table.name().to_owned(),
    };
    names.extend(tables.iter().map(name));
    Some((names, layers))
}

/// A key of a pattern without what stands before a decoder's names in a model with more parts.
fn own_pattern(key: &str) -> String {
    let plain = key.trim_start_matches('^').replace(r"\.", ".");
    let dots = |text: &str| text.matches('.').count();
    match decoder_name(&plain).filter(|_| is_wrapped(&plain)) {
        // What follows the prefix is as it was.
        Some(own) => {
            let prefix = 1 + dots(&plain).saturating_sub(dots(&own));
            let rest = key.splitn(prefix + 1, '.').nth(prefix);
            format!("model.{}", rest.unwrap_or_default())
        }
        None => key.to_owned(),
    }
}

fn paths<T: Copy>(pattern: &ModulePattern<T>, rename: impl Fn(&str) -> String) -> ModulePattern<T> {
    let keys = pattern.iter().map(|(key, value)| (rename(key), value));
    ModulePattern::new(keys).unwrap_or_else(|_| pattern.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(config: &PeftConfig) -> PeftConfig {
        config.under(AdapterPrefix::Wrapped).of_decoder()
    }

    #[test]
    fn names_become_a_pattern_that_spares_towers() {
        let mut config = PeftConfig::new(8, 16.0, ["q_proj", "up_proj"]);
        for (layers, inside) in [(None, true), (Some(vec![0, 12]), false)] {
            config.layers_to_transform = layers;
            let wrapped = config.under(AdapterPrefix::Wrapped);
            assert_eq!(wrapped.layers_to_transform, None);
            let TargetModules::Pattern(pattern) = &wrapped.target_modules else {
                panic!("{wrapped:?}");
            };
            let whole = ModulePattern::new([(pattern.clone(), ())]).unwrap();
            for (module, expected) in [
                ("model.language_model.layers.12.self_attn.q_proj", true),
                ("language_model.model.layers.0.mlp.up_proj", true),
                ("model.language_model.layers.1.mlp.up_proj", inside),
                ("model.language_model.layers.0.mlp.down_proj", false),
                (
                    "model.vision_tower.transformer.layers.0.attention.q_proj",
                    false,
                ),
            ] {
                assert_eq!(whole.get(module).is_some(), expected, "{module}");
            }
            assert_eq!(back(&config), config);
            assert_eq!(config.under(AdapterPrefix::Text), config);
        }
    }

    #[test]
    fn tables_stand_in_the_pattern_beside_the_layers() {
        for (names, layers) in [
            (&["q_proj", "embed_tokens", "lm_head"][..], None),
            (&["q_proj", "embed_tokens"], None),
            (&["q_proj", "up_proj", "lm_head"], Some(vec![0, 3])),
            (&["q_proj", "model.embed_tokens", "lm_head"], Some(vec![2])),
            (&["embed_tokens", "lm_head"], None),
            (&["lm_head"], None),
        ] {
            let mut config = PeftConfig::new(8, 16.0, names.iter().copied());
            config.layers_to_transform = layers;
            let wrapped = config.under(AdapterPrefix::Wrapped);
            let TargetModules::Pattern(pattern) = &wrapped.target_modules else {
                panic!("{wrapped:?}");
            };
            let whole = regex_of(pattern);
            let has = |name: &str| names.iter().any(|it| it.ends_with(name));
            for (module, expected) in [
                ("model.language_model.embed_tokens", has("embed_tokens")),
                ("model.vision_tower.embed_tokens", false),
                ("lm_head", has("lm_head")),
                ("language_model.lm_head", has("lm_head")),
            ] {
                assert_eq!(whole.matches(module), expected, "{module} in {pattern}");
            }
            assert_eq!(back(&config), config);
        }
    }

    fn regex_of(pattern: &str) -> backdraft_arch::ModuleNames {
        backdraft_arch::ModuleNames::of_text(pattern).unwrap()
    }

    #[test]
    fn paths_have_the_prefix_and_lose_it_again() {
        let module = "model.layers.1.self_attn.q_proj";
        let mut config = PeftConfig::new(8, 16.0, [module]);
        let keys = [(module.to_owned(), 4), ("v_proj".to_owned(), 2)];
        config.rank_pattern = ModulePattern::new(keys).unwrap();
        let wrapped = config.under(AdapterPrefix::Wrapped);
        let path = "model.language_model.layers.1.self_attn.q_proj".to_owned();
        assert_eq!(
            wrapped.target_modules,
            TargetModules::Names(vec![path.clone()])
        );
        assert_eq!(wrapped.rank_of(&path), 4);
        assert_eq!(back(&config), config);
    }

    #[test]
    fn patterns_of_others_are_read_under_every_prefix() {
        for key in [
            r"language_model.model.layers.0.mlp.up_proj",
            r"model.language_model.layers.0.mlp.up_proj",
            r"language_model.layers.0.mlp.up_proj",
            r"^model\.language_model\.layers\.0\.mlp\.up_proj",
            r"language_model\.model\.layers\.[0-3]\..*",
        ] {
            let mut config = PeftConfig::new(8, 16.0, ["up_proj"]);
            config.rank_pattern = ModulePattern::new([(key.to_owned(), 4)]).unwrap();
            let config = config.of_decoder();
            assert_eq!(config.rank_of("model.layers.0.mlp.up_proj"), 4, "{key}");
            assert_eq!(config.rank_of("model.layers.7.mlp.up_proj"), 8, "{key}");
        }
        let mut config = PeftConfig::new(8, 16.0, ["up_proj"]);
        config.target_modules = TargetModules::Pattern(".*language_model.*_proj".to_owned());
        assert_eq!(config.clone().of_decoder(), config);
    }
}
