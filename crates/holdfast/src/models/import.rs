//! Trees that were trained elsewhere: a folder that MLflow wrote, or a file of XGBoost or LightGBM. They take the place of what a training would have made; snapshots, calibration and judging are
//! the same, so that what comes in is measured by the same rows beside the same baselines. Pickles are never opened.

use std::path::{Component, Path, PathBuf};

use holdfast_engine::Past;
use holdfast_models::{Hessboost, Model};

use super::spec::{Spec, nearest};
use crate::error::CliError;

/// The file of MLflow that says what is in its folder.
const ML_MODEL: &str = "MLmodel";
/// The largest file that is read: two million nodes of trees are 200 MB.
const BYTES_MAX: u64 = 1 << 30;

/// Trees from elsewhere, read and hashed.
#[derive(Debug, Clone)]
pub(crate) struct Imported {
    pub(crate) bytes: Vec<u8>,
    /// The name of the file, without folders.
    pub(crate) file: String,
    /// BLAKE3 of the file.
    pub(crate) hash: String,
    /// The run of MLflow that logged it.
    pub(crate) run_id: Option<String>,
}

impl Imported {
    /// Reads the model of a folder with an `MLmodel`, or a file that XGBoost or LightGBM wrote.
    ///
    /// # Errors
    /// Nothing there, a flavour other than `xgboost` and `lightgbm`, a path that leaves the folder, a file that is too large.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let (file, run_id) = if path.is_dir() {
            let described = path.join(ML_MODEL);
            let text = std::fs::read_to_string(&described).map_err(|error| {
                refused(
                    &described,
                    &format!(
                        "cannot be read ({error}): name a folder that MLflow wrote, or a file of XGBoost or LightGBM"
                    ),
                )
            })?;
            let data = data_of(&text).map_err(|problem| refused(&described, &problem))?;
            (path.join(data), value_of(&text, "run_id"))
        } else {
            (path.to_owned(), None)
        };
        let bytes = match std::fs::metadata(&file).map(|found| found.len()) {
            Ok(bytes) if bytes > BYTES_MAX => Err(refused(&file, &format!("has {bytes} bytes, more than {BYTES_MAX}"))),
            Ok(_) => std::fs::read(&file).map_err(|error| refused(&file, &format!("cannot be read ({error})"))),
            Err(error) => Err(refused(&file, &format!("cannot be read ({error})"))),
        }?;
        Ok(Self {
            file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            hash: blake3::hash(&bytes).to_hex().to_string(),
            bytes,
            run_id,
        })
    }

    /// The trees.
    ///
    /// # Errors
    /// Damaged bytes, other kinds of model, trees that do not name their features.
    pub(crate) fn model(&self) -> Result<Model, CliError> {
        Model::read(&Hessboost, &self.bytes)
            .map_err(|error| refused(Path::new(&self.file), &format!("is refused: {error}")))
    }

    /// What trained the trees.
    pub(crate) fn engine(&self) -> String {
        format!("{}, imported", holdfast_models::library_of(&self.bytes))
    }

    /// The features that the trees ask for, in their order; all of them are columns that the spec makes features.
    ///
    /// # Errors
    /// The first that is none.
    pub(crate) fn features(&self, spec: &Spec, past: &Past, known: &[String]) -> Result<Vec<String>, CliError> {
        let names: Vec<String> =
            self.model()?.signature().features().iter().map(|feature| feature.name.clone()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            let is_left_out = past.schema(spec.stage()).is_some_and(|schema| schema.field_with_name(unknown).is_ok());
            let why = if is_left_out {
                format!("which {} leaves out", spec.path.display())
            } else {
                format!("which {} does not make{}", spec.stage(), nearest(unknown, known))
            };
            return Err(CliError::Training(format!("{} asks for the feature `{unknown}`, {why}", self.file)));
        }
        Ok(names)
    }
}

fn refused(path: &Path, problem: &str) -> CliError {
    CliError::Training(format!("{} {problem}", path.display()))
}

/// The flavours of MLflow whose files are trees, and no pickles.
const FLAVOURS: [&str; 2] = ["xgboost", "lightgbm"];

/// The file of the flavour `xgboost` or `lightgbm` of an `MLmodel`, below its folder.
fn data_of(text: &str) -> Result<PathBuf, String> {
    let flavours = block(text, 0, "flavors").ok_or("has no `flavors`: it is no description of a model")?;
    let found = FLAVOURS.into_iter().find_map(|flavour| Some((flavour, block(&flavours, 0, flavour)?)));
    let Some((flavour, described)) = found else {
        let names: Vec<&str> = flavours
            .lines()
            .filter(|line| !line.starts_with([' ', '#', '-']))
            .filter_map(|line| line.strip_suffix(':'))
            .collect();
        return Err(format!(
            "has the flavours {}, and none is {}: others are pickles, which can run any code, or other kinds of model; log the booster with mlflow.xgboost.log_model or mlflow.lightgbm.log_model",
            names.join(", "),
            FLAVOURS.join(" or ")
        ));
    };
    let data = value_of(&described, "data")
        .ok_or_else(|| format!("does not say which file the flavour {flavour} is in (`data`)"))?;
    let path = PathBuf::from(&data);
    if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("names the file `{data}`, which is not in its folder"));
    }
    Ok(path)
}

/// The lines below a key of YAML at a depth of indentation, with theirs taken off; MLflow writes plain blocks.
fn block(text: &str, indent: usize, key: &str) -> Option<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| depth(line) != indent || line.trim() != format!("{key}:"));
    lines.next()?;
    let body: Vec<&str> = lines
        .take_while(|line| depth(line) > indent || line.trim().is_empty())
        .filter(|line| !line.trim().is_empty())
        .collect();
    let own = body.iter().map(|line| depth(line)).min().unwrap_or(0);
    Some(body.into_iter().map(|line| &line[own..]).collect::<Vec<_>>().join("\n"))
}

/// What a key says in the outermost lines of YAML; `null` says nothing.
fn value_of(text: &str, key: &str) -> Option<String> {
    let said = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let said = said.trim().trim_matches(['"', '\'']);
    (!said.is_empty() && said != "null").then(|| said.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: &str = "artifact_path: model\nflavors:\n  python_function:\n    data: model.ubj\n    env:\n      conda: conda.yaml\n    loader_module: mlflow.xgboost\n  xgboost:\n    code: null\n    data: model.ubj\n    model_class: xgboost.core.Booster\n    model_format: ubj\nmlflow_version: 2.20.1\nrun_id: 0123abcd\n";

    #[test]
    fn the_file_of_a_flavour_of_trees_is_found_and_nothing_else_is_taken() {
        assert_eq!(data_of(WRITTEN), Ok(PathBuf::from("model.ubj")));
        assert_eq!(value_of(WRITTEN, "run_id"), Some("0123abcd".to_owned()));
        let lightgbm = WRITTEN
            .replace("xgboost:\n    code", "lightgbm:\n    code")
            .replace("ubj\n    model_class", "lgb\n    model_class");
        assert_eq!(data_of(&lightgbm), Ok(PathBuf::from("model.lgb")));
        let of = |from: &str, to: &str| data_of(&WRITTEN.replace(from, to)).unwrap_err();
        let sklearn =
            "flavors:\n  python_function:\n    model_path: model.pkl\n  sklearn:\n    pickled_model: model.pkl\n";
        let told = data_of(sklearn).unwrap_err();
        assert!(told.contains("python_function, sklearn") && told.contains("pickles"), "{told}");
        assert!(
            of("data: model.ubj\n    model_class", "data: ../../etc/passwd\n    model_class")
                .contains("not in its folder")
        );
        assert!(
            of("data: model.ubj\n    model_class", "data: /etc/passwd\n    model_class").contains("not in its folder")
        );
        assert!(of("data: model.ubj\n    model_class", "model_class").contains("which file"));
        assert!(of("flavors:", "flavours:").contains("no `flavors`"));
    }
}
