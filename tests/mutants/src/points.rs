//! The places in a source file where a defect can be planted.
//!
//! A point replaces one expression or statement. Which replacements exist follows from the syntax
//! alone, so some of them do not compile; `build` leaves those out.

use std::ops::Range;

use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, ImplItemFn, ItemFn, Lit, ReturnType, Signature, Stmt, TraitItemFn, Type};

/// One expression or statement, with the defects that can be planted in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// The bytes of the source that the point replaces. Empty for the start of a function body.
    pub(crate) range: Range<usize>,
    pub(crate) line: usize,
    /// The function that contains the point.
    pub(crate) function: String,
    pub(crate) kind: Kind,
    /// What stands in place of the source, one text for each defect.
    pub(crate) defects: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An expression that becomes another expression of the same type.
    Expression,
    /// A statement that is left out.
    Statement,
    /// A function that returns at its start.
    Body,
}

/// Finds all points of a file.
///
/// # Errors
/// If the file is not valid Rust.
pub(crate) fn points_of(source: &str) -> syn::Result<Vec<Point>> {
    let file = syn::parse_file(source)?;
    let mut finder = Finder { source, functions: Vec::new(), must_diverge: false, points: Vec::new() };
    finder.visit_file(&file);
    Ok(finder.points)
}

struct Finder<'a> {
    source: &'a str,
    /// The functions around the current node, the innermost last.
    functions: Vec<String>,
    /// Whether the current block must not be left at its end: the `else` of a `let`, or an arm of a
    /// `match`.
    must_diverge: bool,
    points: Vec<Point>,
}

impl Finder<'_> {
    fn text(&self, node: &impl Spanned) -> &str {
        self.source.get(node.span().byte_range()).unwrap_or_default()
    }

    fn add(&mut self, node: &impl Spanned, kind: Kind, defects: Vec<String>) {
        let span = node.span();
        self.add_at(span.byte_range(), span.start().line, kind, defects);
    }

    fn add_at(&mut self, range: Range<usize>, line: usize, kind: Kind, defects: Vec<String>) {
        if !defects.is_empty() && !self.functions.is_empty() {
            let function = self.functions.join("::");
            self.points.push(Point { range, line, function, kind, defects });
        }
    }

    fn function(&mut self, signature: &Signature, block: &syn::Block, visit: impl FnOnce(&mut Self)) {
        // A const function can't ask which defect is wanted.
        if signature.constness.is_some() {
            return;
        }
        self.functions.push(signature.ident.to_string());
        if let ReturnType::Type(_, output) = &signature.output {
            let start = block.brace_token.span.open().byte_range().end;
            let line = block.brace_token.span.open().start().line;
            let returns = values_of(output).into_iter().map(|value| format!("return {value};"));
            self.add_at(start..start, line, Kind::Body, returns.collect());
        }
        visit(self);
        self.functions.pop();
    }

    /// Expressions that decide: their opposite is a defect.
    fn negate_condition(&mut self, condition: &Expr) {
        let is_plain = match condition {
            // Some method calls get their opposite wherever they stand.
            Expr::MethodCall(call) => self.other_method(call).is_empty(),
            Expr::Call(_) | Expr::Field(_) | Expr::Macro(_) | Expr::Path(_) => true,
            _ => false,
        };
        if is_plain {
            let opposite = format!("!({})", self.text(condition));
            self.add(condition, Kind::Expression, vec![opposite]);
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_for_tests(attributes_of(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.function(&function.sig, &function.block, |this| visit::visit_block(this, &function.block));
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            self.function(&function.sig, &function.block, |this| visit::visit_block(this, &function.block));
        }
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(&function.sig, block, |this| visit::visit_block(this, block));
        }
    }

    fn visit_item_impl(&mut self, block: &'ast syn::ItemImpl) {
        let name = block.self_ty.to_token_stream().to_string().replace(' ', "");
        self.functions.push(name);
        visit::visit_item_impl(self, block);
        self.functions.pop();
    }

    // What is computed at compile time can't be switched at run time.
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}
    fn visit_trait_item_const(&mut self, _: &'ast syn::TraitItemConst) {}
    fn visit_item_enum(&mut self, _: &'ast syn::ItemEnum) {}
    fn visit_type(&mut self, _: &'ast Type) {}
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}

    fn visit_expr_repeat(&mut self, repeat: &'ast syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if let Stmt::Expr(expression, Some(_)) = statement
            && can_be_left_out(expression)
            && !(self.must_diverge && matches!(expression, Expr::Break(_) | Expr::Continue(_)))
        {
            self.add(statement, Kind::Statement, vec![String::new()]);
        }
        visit::visit_stmt(self, statement);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        let Some(init) = &local.init else { return };
        self.visit_expr(&init.expr);
        if let Some((_, diverge)) = &init.diverge {
            let before = std::mem::replace(&mut self.must_diverge, true);
            self.visit_expr(diverge);
            self.must_diverge = before;
        }
    }

    fn visit_expr_if(&mut self, node: &'ast syn::ExprIf) {
        self.negate_condition(&node.cond);
        visit::visit_expr_if(self, node);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if let Some((_, guard)) = &arm.guard {
            self.negate_condition(guard);
        }
        // The other arms may have a value, which an arm that goes on does not have.
        let before = std::mem::replace(&mut self.must_diverge, true);
        visit::visit_arm(self, arm);
        self.must_diverge = before;
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        let defects = match expression {
            Expr::Binary(binary) if !contains_let(expression) => self.binary(binary),
            Expr::Unary(unary) if matches!(unary.op, syn::UnOp::Not(_)) => {
                vec![self.text(&unary.expr).to_string()]
            }
            Expr::MethodCall(call) => self.other_method(call),
            Expr::Call(call) => self.other_bound(call),
            Expr::Lit(literal) => other_literal(&literal.lit),
            _ => Vec::new(),
        };
        self.add(expression, Kind::Expression, defects);
        visit::visit_expr(self, expression);
    }
}

impl Finder<'_> {
    fn binary(&self, binary: &syn::ExprBinary) -> Vec<String> {
        let others: &[&str] = match binary.op {
            BinOp::Lt(_) => &["<=", ">="],
            BinOp::Le(_) => &["<", ">"],
            BinOp::Gt(_) => &[">=", "<="],
            BinOp::Ge(_) => &[">", "<"],
            BinOp::Eq(_) => &["!="],
            BinOp::Ne(_) => &["=="],
            BinOp::And(_) => &["||"],
            BinOp::Or(_) => &["&&"],
            BinOp::Add(_) => &["-"],
            BinOp::Sub(_) => &["+"],
            BinOp::Mul(_) => &["/"],
            BinOp::Div(_) => &["*"],
            BinOp::AddAssign(_) => &["-="],
            BinOp::SubAssign(_) => &["+="],
            _ => &[],
        };
        let (left, right) = (self.text(&binary.left), self.text(&binary.right));
        // The operands may bind less tightly than the operator that takes the place of this one.
        let joined = |operator: &&str| match *operator {
            "-=" | "+=" => format!("{left} {operator} {right}"),
            _ => format!("({left}) {operator} ({right})"),
        };
        others.iter().map(joined).collect()
    }

    fn other_method(&self, call: &syn::ExprMethodCall) -> Vec<String> {
        let name = call.method.to_string();
        let other = match name.as_str() {
            "all" => "any",
            "any" => "all",
            "checked_add" => "checked_sub",
            "checked_sub" => "checked_add",
            "first" => "last",
            "is_empty" | "is_some_and" | "is_none_or" | "contains" | "contains_key" | "starts_with" => {
                return vec![format!("!{}", self.text(call))];
            }
            "is_err" => "is_ok",
            "is_none" => "is_some",
            "is_ok" => "is_err",
            "is_some" => "is_none",
            "last" => "first",
            "max" => "min",
            "min" => "max",
            "saturating_add" => "saturating_sub",
            "saturating_sub" => "saturating_add",
            _ => return Vec::new(),
        };
        let (whole, method) = (call.span().byte_range(), call.method.span().byte_range());
        let before = self.source.get(whole.start..method.start).unwrap_or_default();
        let after = self.source.get(method.end..whole.end).unwrap_or_default();
        vec![format!("{before}{other}{after}")]
    }

    fn other_bound(&self, call: &syn::ExprCall) -> Vec<String> {
        let function = self.text(&call.func);
        let other = match function.rsplit("::").next() {
            Some("Included") => function.replace("Included", "Excluded"),
            Some("Excluded") => function.replace("Excluded", "Included"),
            _ => return Vec::new(),
        };
        let end = call.func.span().byte_range().end;
        let rest = self.source.get(end..call.span().byte_range().end).unwrap_or_default();
        vec![format!("{other}{rest}")]
    }
}

fn other_literal(literal: &Lit) -> Vec<String> {
    match literal {
        Lit::Bool(value) => vec![(!value.value).to_string()],
        Lit::Int(value) => {
            let next = value.base10_parse::<u128>().ok().and_then(|number| number.checked_add(1));
            next.map(|next| format!("{next}{}", value.suffix())).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// Values of a type that are likely to be wrong; empty if none is known.
fn values_of(output: &Type) -> Vec<&'static str> {
    let text = output.to_token_stream().to_string().replace(' ', "");
    let inside_result = text.strip_prefix("Result<").and_then(|rest| rest.strip_suffix('>'));
    match inside_result.map(|inside| inside.split(",Error").next().unwrap_or(inside)) {
        Some("()") => vec!["Ok(())"],
        Some("bool") => vec!["Ok(true)", "Ok(false)"],
        Some("u64" | "u32" | "usize") => vec!["Ok(0)", "Ok(1)"],
        Some(inside) if inside.starts_with("Option<") => vec!["Ok(None)"],
        Some(inside) if inside.starts_with("Vec<") => vec!["Ok(Vec::new())"],
        Some(_) => Vec::new(),
        None => match text.as_str() {
            "bool" => vec!["true", "false"],
            "u64" | "u32" | "u16" | "usize" | "i64" | "u128" => vec!["0", "1"],
            "Duration" => vec!["Duration::ZERO"],
            _ if text.starts_with("Option<") => vec!["None"],
            _ if text.starts_with("Vec<") => vec!["Vec::new()"],
            _ => Vec::new(),
        },
    }
}

/// Whether a statement can be missing without changing the types around it.
fn can_be_left_out(expression: &Expr) -> bool {
    match expression {
        Expr::Break(_) | Expr::Continue(_) | Expr::MethodCall(_) => true,
        // What is dropped early is dropped at the end of its scope otherwise.
        Expr::Call(call) => !matches!(&*call.func, Expr::Path(path) if path.path.is_ident("drop")),
        // A variable without its new value may have been moved out of.
        Expr::Assign(assign) => !matches!(*assign.left, Expr::Path(_)),
        Expr::Await(inner) => can_be_left_out(&inner.base),
        Expr::Try(inner) => can_be_left_out(&inner.expr),
        Expr::Binary(binary) => is_assignment(&binary.op),
        _ => false,
    }
}

fn is_assignment(operator: &BinOp) -> bool {
    matches!(
        operator,
        BinOp::AddAssign(_) | BinOp::SubAssign(_) | BinOp::BitAndAssign(_) | BinOp::BitOrAssign(_)
    )
}

/// A chain with `let` is not an expression, so it stays as it is. Its parts are points.
fn contains_let(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(binary) => contains_let(&binary.left) || contains_let(&binary.right),
        _ => false,
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        text.contains("cfg (test)") || text.contains("cfg(test)") || attribute.path().is_ident("test")
    })
}

fn attributes_of(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each defect as the text that stands in place of the source.
    fn defects(source: &str) -> Vec<(String, Vec<String>)> {
        let points = points_of(source).unwrap();
        points.into_iter().map(|point| (source[point.range].to_string(), point.defects)).collect()
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_string()).collect()
    }

    #[test]
    fn a_comparison_gets_its_boundary_and_its_opposite() {
        let found = defects("fn f(a: u8, b: u8) { if a < b { g(); } }");
        assert_eq!(found[0], ("a < b".into(), texts(&["(a) <= (b)", "(a) >= (b)"])));
        assert_eq!(found[1], ("g();".into(), texts(&[""])));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_function_returns_early_with_values_of_its_type() {
        let found = defects("fn f() -> Result<bool> { g() }");
        assert_eq!(found, [(String::new(), texts(&["return Ok(true);", "return Ok(false);"]))]);
    }

    #[test]
    fn tests_constants_patterns_and_let_chains_are_left_alone() {
        let source = "const A: u8 = 1 + 2;
            #[cfg(test)] mod tests { fn f() -> bool { true } }
            #[test] fn t() { assert(1 < 2); }
            const fn c() -> bool { 1 < 2 }
            fn f(a: Option<u8>) { match a { Some(1) => {} _ => {} } }
            fn g(a: Option<bool>) { if let Some(b) = a && b {} }";
        assert_eq!(defects(source), []);
    }

    #[test]
    fn a_bound_and_a_method_get_their_twins() {
        let found = defects("fn f(a: u8) { let b = (Bound::Included(a), x.y(a).min(z)); }");
        assert_eq!(found[0].1, texts(&["Bound::Excluded(a)"]));
        assert_eq!(found[1].1, texts(&["x.y(a).max(z)"]));
    }
}
