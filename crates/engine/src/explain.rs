//! What each code means. The page `docs/mistakes.md` is the one place that says so.

const PAGE: &str = include_str!("../../../docs/mistakes.md");

/// The section about a code: what it means, an example, the remedy. `None` when there is no such code.
pub fn explain(code: &str) -> Option<String> {
    let code = code.trim().to_uppercase();
    let heading = format!("## {code} ");
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(&heading));
    let title = lines.next()?.trim_start_matches("## ");
    let body: Vec<&str> = lines.take_while(|line| !line.starts_with("## ") && !line.starts_with("# ")).collect();
    Some(format!("{title}\n\n{}\n", body.join("\n").trim()))
}

/// Every code with its title, in the page's order.
pub fn codes() -> Vec<(&'static str, &'static str)> {
    PAGE.lines()
        .filter_map(|line| line.strip_prefix("## ")?.split_once(' '))
        .filter(|(code, _)| code.len() == 5 && (code.starts_with('E') || code.starts_with('W')))
        .collect()
}

pub(crate) fn is_known(code: &str) -> bool {
    codes().iter().any(|(known, _)| *known == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_in_the_source_is_explained_and_every_explained_code_is_in_the_source() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut open = vec![folder];
        let mut used = std::collections::BTreeSet::new();
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let code = |part: &str| {
                    let is_code = part.len() == 5
                        && part.starts_with(['E', 'W'])
                        && part[1..].chars().all(|character| character.is_ascii_digit());
                    is_code.then(|| part.to_owned())
                };
                used.extend(text.split('"').filter_map(code));
            }
        }
        assert!(used.len() > 30, "{used:?}");
        let explained: std::collections::BTreeSet<String> =
            codes().into_iter().map(|(code, _)| code.to_owned()).collect();
        assert_eq!(used, explained);
    }

    #[test]
    fn an_explanation_has_an_example_and_a_remedy() {
        for (code, title) in codes() {
            let text = explain(code).unwrap();
            assert!(text.starts_with(&format!("{code} {title}\n")), "{text}");
            assert!(text.contains("```"), "{code} has no example");
            assert!(text.contains("Remedy: "), "{code} has no remedy");
        }
        assert!(explain("E99").is_none());
        assert_eq!(explain("e0203"), explain("E0203"));
    }
}
