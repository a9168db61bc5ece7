//! The Ory Permission Language, as far as names go.
//!
//! Keto reads the models of all policies as one file, so a model must not reach
//! beyond its own text: comments and strings end, braces balance, and classes
//! stand at the top only. Keto's parser skips what it does not know between
//! classes and resumes after a missing body, hence the strictness here. What
//! the classes say is checked by Keto itself (`POST /opl/syntax/check`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// First line of the namespaces file; Keto ignores it, editors want it.
const IMPORT: &str = "import { Namespace, SubjectSet, Context } from \"@ory/keto-namespace-types\"\n";
/// Keeps the file from being empty, which would drop every namespace.
const BASELINE: &str = "class PeristyleNone implements Namespace {}\n";

/// A model: its classes with their relations and permissions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Model {
    /// Relations and permissions of each class.
    pub classes: BTreeMap<String, BTreeSet<String>>,
    /// The classes as written, without imports.
    pub text: String,
}

/// Why a model cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct InvalidModel {
    line: usize,
    problem: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Kind<'a> {
    Word(&'a str),
    Text(&'a str),
    Mark(char),
}

#[derive(Clone, Debug)]
struct Token<'a> {
    kind: Kind<'a>,
    start: usize,
    end: usize,
}

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Word(text) | Kind::Text(text) => f.write_str(text),
            Kind::Mark(c) => write!(f, "{c}"),
        }
    }
}

/// Reads the names of a model.
///
/// # Errors
/// When it declares no class, or its text could reach beyond itself.
pub fn parse(source: &str) -> Result<Model, InvalidModel> {
    let mut reader = Reader { source, tokens: tokens(source)?, at: 0 };
    let mut model = Model::default();
    while let Some(token) = reader.next() {
        match token.kind {
            Kind::Word("import") => reader.import(&token)?,
            Kind::Word("class") => {
                let (name, relations, end) = reader.class()?;
                if model.classes.insert(name.clone(), relations).is_some() {
                    return Err(reader.error(token.start, format!("class {name} is declared twice")));
                }
                model.text.push_str(&source[token.start..end]);
                model.text.push('\n');
            }
            Kind::Mark(';') => {}
            other => {
                return Err(reader.error(
                    token.start,
                    format!("expected `class X implements Namespace {{ … }}`, found {other}"),
                ));
            }
        }
    }
    if model.classes.is_empty() {
        return Err(InvalidModel {
            line: 1,
            problem: "declares no class; write `class X implements Namespace { … }` or leave the model out"
                .to_owned(),
        });
    }
    Ok(model)
}

struct Reader<'a> {
    source: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn error(&self, at: usize, problem: impl Into<String>) -> InvalidModel {
        error(self.source, at, problem)
    }

    fn expect(&mut self, wanted: &[Kind<'_>]) -> Result<(), InvalidModel> {
        for kind in wanted {
            match self.next() {
                Some(token) if token.kind == *kind => {}
                Some(token) => {
                    return Err(self.error(token.start, format!("expected {kind}, found {}", token.kind)));
                }
                None => return Err(self.error(self.source.len(), format!("expected {kind} before the end"))),
            }
        }
        Ok(())
    }

    /// `import { A, B } from "…"`, dropped: the file has one for all.
    fn import(&mut self, start: &Token<'_>) -> Result<(), InvalidModel> {
        self.expect(&[Kind::Mark('{')])?;
        loop {
            match self.next().map(|token| token.kind) {
                Some(Kind::Word("class")) | None => {
                    return Err(self.error(start.start, "the import does not end"));
                }
                Some(Kind::Mark('}')) => break,
                Some(_) => {}
            }
        }
        self.expect(&[Kind::Word("from")])?;
        match self.next().map(|token| token.kind) {
            Some(Kind::Text(_)) => Ok(()),
            _ => Err(self.error(start.start, "the import does not name its module")),
        }
    }

    /// `X implements Namespace { … }`: name, relations and where it ends.
    fn class(&mut self) -> Result<(String, BTreeSet<String>, usize), InvalidModel> {
        let name = match self.next() {
            Some(Token { kind: Kind::Word(name), .. }) => name.to_owned(),
            other => {
                let at = other.map_or(self.source.len(), |token| token.start);
                return Err(self.error(at, "class has no name"));
            }
        };
        self.expect(&[Kind::Word("implements"), Kind::Word("Namespace"), Kind::Mark('{')])?;
        let mut relations = BTreeSet::new();
        loop {
            let Some(token) = self.next() else {
                return Err(self.error(self.source.len(), format!("class {name} does not end")));
            };
            match token.kind {
                Kind::Mark('}') => return Ok((name, relations, token.end)),
                Kind::Mark(';') => {}
                Kind::Word("related") => {
                    self.expect(&[Kind::Mark(':'), Kind::Mark('{')])?;
                    self.members(&name, &mut relations)?;
                }
                Kind::Word("permits") => {
                    self.expect(&[Kind::Mark('='), Kind::Mark('{')])?;
                    self.members(&name, &mut relations)?;
                }
                other => {
                    return Err(self.error(
                        token.start,
                        format!("class {name}: expected related or permits, found {other}"),
                    ));
                }
            }
        }
    }

    /// The names before each `:` up to the closing brace.
    fn members(&mut self, class: &str, names: &mut BTreeSet<String>) -> Result<(), InvalidModel> {
        let mut depth = 0_usize;
        let mut before: Option<Kind<'_>> = None;
        loop {
            let Some(token) = self.next() else {
                return Err(self.error(self.source.len(), format!("class {class} does not end")));
            };
            match &token.kind {
                Kind::Mark('}') if depth == 0 => return Ok(()),
                Kind::Mark('(' | '[' | '<') => depth += 1,
                Kind::Mark(')' | ']' | '>') if depth > 0 => depth -= 1,
                Kind::Mark('{' | '}' | ')' | ']' | '>') | Kind::Word("class") => {
                    return Err(self
                        .error(token.start, format!("class {class}: {} is not expected here", token.kind)));
                }
                Kind::Mark(':') if depth == 0 => {
                    if let Some(Kind::Word(name) | Kind::Text(name)) = before
                        && !names.insert(name.to_owned())
                    {
                        return Err(
                            self.error(token.start, format!("class {class}: {name} is declared twice"))
                        );
                    }
                }
                _ => {}
            }
            before = Some(token.kind);
        }
    }
}

fn error(source: &str, at: usize, problem: impl Into<String>) -> InvalidModel {
    InvalidModel { line: source[..at.min(source.len())].matches('\n').count() + 1, problem: problem.into() }
}

/// The tokens of Keto's lexer. Its strings know no escapes; here they hold
/// nothing that would need one.
fn tokens(source: &str) -> Result<Vec<Token<'_>>, InvalidModel> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        let start = at;
        if c.is_ascii_whitespace() || c == '\u{b}' {
            at += 1;
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if let Some(comment) = rest.strip_prefix("/*") {
            match comment.find("*/") {
                Some(end) => at += end + 4,
                None => return Err(error(source, at, "the comment does not end")),
            }
        } else if c == '\'' || c == '"' {
            let Some(length) = rest[1..].find(c) else {
                return Err(error(source, at, "the string does not end"));
            };
            let text = &rest[1..=length];
            if !text.chars().all(|c| c.is_ascii_alphanumeric() || "_/@.-".contains(c)) {
                return Err(error(
                    source,
                    at,
                    "a string may hold letters, digits, '_', '/', '@', '.' and '-'",
                ));
            }
            at += length + 2;
            tokens.push(Token { kind: Kind::Text(text), start, end: at });
        } else if c.is_ascii_alphabetic() || c == '_' {
            at += rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            tokens.push(Token { kind: Kind::Word(&source[start..at]), start, end: at });
        } else if rest.starts_with("=>") {
            at += 2;
        } else if ":.()[]{}<>=,;|!&".contains(c) {
            at += 1;
            tokens.push(Token { kind: Kind::Mark(c), start, end: at });
        } else {
            return Err(error(source, at, format!("{c:?} is not part of the language")));
        }
    }
    Ok(tokens)
}

/// The namespaces file of an AuthClass.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamespacesFile {
    /// The file.
    pub text: String,
    /// Names that Keto must show once it has loaded the file.
    pub namespaces: BTreeSet<String>,
}

/// One file of `models`, and with each the line on which it begins.
#[must_use]
pub fn file<'a>(models: impl IntoIterator<Item = &'a Model>) -> (NamespacesFile, Vec<usize>) {
    let mut text = format!("{IMPORT}{BASELINE}");
    let mut namespaces: BTreeSet<String> = ["PeristyleNone".to_owned()].into();
    let mut lines = Vec::new();
    for model in models {
        lines.push(text.matches('\n').count() + 1);
        text.push_str(&model.text);
        namespaces.extend(model.classes.keys().cloned());
    }
    (NamespacesFile { text, namespaces }, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_classes_relations_and_permissions_are_read() {
        let model = parse(
            r#"
            import { Namespace, Context } from '@ory/keto-namespace-types'; /* a
            comment */ class User implements Namespace {}
            class Doc implements Namespace {
              related: { owners: Array<User>, "viewers": (User | SubjectSet<Doc, "owners">)[] } // here
              permits = {
                view: (ctx: Context): boolean => this.related.viewers.includes(ctx.subject) && !this.permits.edit(ctx),
                edit: (ctx) => this.related.owners.includes(ctx.subject),
              }
            }"#,
        )
        .unwrap();
        let names: Vec<&str> = model.classes.keys().map(String::as_str).collect();
        assert_eq!(names, ["Doc", "User"]);
        let relations: Vec<&str> = model.classes["Doc"].iter().map(String::as_str).collect();
        assert_eq!(relations, ["edit", "owners", "view", "viewers"]);
        assert!(!model.text.contains("import"));
        assert_eq!(parse(&model.text).unwrap().classes, model.classes);
    }

    #[test]
    fn a_model_cannot_reach_beyond_its_text() {
        for (model, problem) in [
            ("class A implements Namespace {", "line 1: class A does not end"),
            ("class A implements Namespace {} }", "expected `class X implements Namespace { … }`, found }"),
            ("class A implements Namespace {} /* ", "the comment does not end"),
            ("class A implements Namespace { related: { \"a: A[] } }", "the string does not end"),
            ("class A implements Namespace { related: { 'a\\': A[] } }", "a string may hold"),
            (
                "class A implements Namespace { permits = { a: (ctx) => } class B implements Namespace {} }",
                "class A: expected related or permits, found class",
            ),
            (
                "class A implements Namespace { related: { class: A[] } }",
                "class A: class is not expected here",
            ),
            ("class A implements Namespace { related: { a: { } } }", "class A: { is not expected here"),
            ("class A implements Namespace {} class A implements Namespace {}", "class A is declared twice"),
            ("class A implements Namespace { related: { a: A[] a: A[] } }", "class A: a is declared twice"),
            ("import { class A implements Namespace {} } from 'x'", "the import does not end"),
            ("class A extends B {}", "expected implements, found extends"),
            ("class é implements Namespace {}", "'é' is not part of the language"),
            ("", "declares no class"),
        ] {
            let error = parse(model).unwrap_err().to_string();
            assert!(error.contains(problem), "{model}: {error}");
        }
    }
}
