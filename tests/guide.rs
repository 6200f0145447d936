//! The guide, tried as a new user would: every block of `docs/guide.md` as it stands, on images like those it names.
//!
//! The `sh` blocks of a recipe (a heading of the third order) run one after the other in one shell, in a mount namespace
//! in which `/srv`, `/mnt` and `/run` are empty but for the images, and the programs under test lie over `/usr/bin` and
//! `/usr/sbin`. Nothing outside of it changes. `fstab` blocks are added to an /etc/fstab of its own, `ini` blocks are
//! verified by systemd, `xml` blocks by xmllint.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::damage::recipe;
use support::disk::Partitioned;
use support::tools;
use tempfile::TempDir;

/// Where the mounts of the tests' programs would else be remembered.
const ENVIRONMENT: (&str, &str) = ("INSTAR_STATE_DIR", "/srv/state");
/// In the namespace: `$1` is the scene's folder.
const PREPARE: &str = "set -eu\n\
    for folder in bin sbin; do\n\
    mount -t overlay -o \"lowerdir=$1/$folder:/usr/$folder\" none \"/usr/$folder\"; done\n\
    for folder in srv mnt run; do mount -t tmpfs none /$folder; done\n\
    mkdir -p /srv/disks/web; cp -r \"$1/images\" /srv/images\n\
    touch \"$1/fstab\"; if [ -e /etc/fstab ]; then mount --bind \"$1/fstab\" /etc/fstab; fi\n\
    cd /\n";

/// One fenced block.
struct Block {
    recipe: String,
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide.md");
    let guide = fs::read_to_string(path).expect("the guide");
    let (mut blocks, mut recipe, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in guide.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => writeln!(block.text, "{line}").expect("a string takes anything"),
            (None, Some(language)) => {
                let (recipe, language) = (recipe.clone(), language.to_owned());
                open = Some(Block { recipe, language, text: String::new() });
            }
            (None, None) => {
                if let Some(heading) = line.strip_prefix("### ") {
                    heading.clone_into(&mut recipe);
                }
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// A script of the `sh` blocks of one recipe. A line that ends in `# exits N` has to.
fn script_of(blocks: &[&Block]) -> String {
    let mut script = String::new();
    for line in blocks.iter().filter(|block| block.language == "sh").flat_map(|block| block.text.lines()) {
        let line = match line.split_once("# exits ") {
            Some((command, code)) => {
                let code: u8 = code.trim().parse().expect("a code");
                format!("code=0; {{ {}; }} || code=$?; [ $code = {code} ]", command.trim())
            }
            None => line.to_owned(),
        };
        writeln!(script, "{line}").expect("a string takes anything");
    }
    script
}

/// The images that the guide names, which every recipe gets a copy of, the programs, and the fstab of one recipe.
struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let images = folder.path().join("images");
        for name in ["images", "bin", "sbin"] {
            fs::create_dir(folder.path().join(name)).expect("a new folder");
        }
        fs::rename(Partitioned::new().image, images.join("web.qcow2"))
            .expect("one file system for temporary files");
        for (name, kind) in
            [("leaky", "refcount-leak-one"), ("broken", "l2-entry-past-eof"), ("counts", "refcount-too-low")]
        {
            let made = recipe(kind).make(&images).path;
            fs::rename(made, images.join(name).with_extension("qcow2")).expect("the image");
        }
        let mut create = tools::qemu_img(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "web.qcow2"]);
        tools::must(create.arg(images.join("top.qcow2")));
        let built = |name: &str| Path::new(env!("CARGO_BIN_EXE_instar-mount")).with_file_name(name);
        for (link, program) in [
            ("bin/instar", built("instar")),
            ("bin/instar-mount", built("instar-mount")),
            ("sbin/mount.instar", built("mount-instar")),
        ] {
            symlink(program, folder.path().join(link)).expect("a link to the program");
        }
        Self(folder)
    }

    /// Runs a script in the namespace.
    fn run(&self, script: &str) -> Result<String, String> {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--propagation=private",
            "bash",
            "-c",
            &format!("{PREPARE}{script}"),
            "bash",
        ]);
        let output = tools::run(command.arg(self.0.path()).env(ENVIRONMENT.0, ENVIRONMENT.1));
        let said = format!("{}{}", tools::stdout(&output), tools::stderr(&output));
        if output.status.success() { Ok(said) } else { Err(format!("{}\n{said}", output.status)) }
    }
}

/// Everything that the guide's commands need.
fn possible() -> Result<(), String> {
    tools::root()?;
    tools::fuse()?;
    tools::qemu()?;
    for program in ["unshare", "bash", "fusermount3", "python3"] {
        tools::program(program)?;
    }
    Partitioned::possible()?;
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_instar-mount")).with_file_name("mount-instar");
    if !helper.is_file() {
        return Err(format!("{} is not built", helper.display()));
    }
    if !Path::new("/etc/fstab").exists() {
        return Err("there is no /etc/fstab to put another one over".to_owned());
    }
    Scene::new().run("true").map(drop)
}

#[test]
fn commands_of_every_recipe_do_what_the_guide_says() {
    need!(possible());
    let blocks = blocks();
    let mut recipes: Vec<_> = blocks.iter().map(|block| block.recipe.as_str()).collect();
    recipes.dedup();
    let (scene, mut run) = (Scene::new(), 0);
    for name in recipes {
        let own: Vec<_> = blocks.iter().filter(|block| block.recipe == name).collect();
        let script = script_of(&own);
        if script.is_empty() {
            continue;
        }
        let lines = own.iter().filter(|block| block.language == "fstab").map(|block| block.text.as_str());
        fs::write(scene.0.path().join("fstab"), lines.collect::<String>()).expect("a new file");
        if let Err(error) = scene.run(&script) {
            panic!("{name}:\n{script}\n{error}");
        }
        run += 1;
    }
    assert!(run >= 15, "only {run} recipes were found");
}

#[test]
fn units_of_the_guide_are_right_for_systemd() {
    need!(possible(), tools::program("systemd-analyze"));
    let scene = Scene::new();
    let mut verify = "systemd-analyze verify --man=no".to_owned();
    for block in blocks().iter().filter(|block| block.language == "ini") {
        let (first, rest) = block.text.split_once('\n').expect("a unit");
        let name = first.strip_prefix("# ").expect("the unit's name in its first line");
        fs::write(scene.0.path().join(name), rest).expect("a new file");
        write!(verify, " \"$1/{name}\"").expect("a string takes anything");
    }
    assert!(verify.contains(".mount") && verify.contains(".timer"), "{verify}");
    assert_eq!(scene.run(&verify), Ok(String::new()));
    let broken = "sed -i s/Type=instar/Typ=instar/ \"$1/srv-disks-web.mount\"\n";
    let said = scene.run(&format!("{broken}{verify}")).expect("a warning");
    assert!(said.contains("Typ"), "a wrong unit passes: {said}");
}

#[test]
fn xml_of_the_guide_is_well_formed() {
    need!(tools::program("xmllint"));
    let folder = tempfile::tempdir().unwrap();
    let blocks = blocks();
    let mut seen = 0;
    for block in blocks.iter().filter(|block| block.language == "xml") {
        let path = folder.path().join("block.xml");
        fs::write(&path, &block.text).unwrap();
        tools::must(Command::new("xmllint").arg("--noout").arg(&path));
        seen += 1;
    }
    assert_eq!(seen, 1);
}

#[test]
fn every_block_of_the_guide_is_of_a_kind_that_is_tried() {
    for block in blocks() {
        let language = block.language.as_str();
        assert!(["sh", "fstab", "ini", "xml"].contains(&language), "{}: {language}", block.recipe);
    }
}
