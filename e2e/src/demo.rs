//! `cargo sandbox demo`: from nothing to the first protected call, with a
//! transcript of real calls. It may run again and again.

use anyhow::{Context, Result, bail, ensure};
use tonic::Code;

use crate::example::{AUTH, Example, GREETER, NAMESPACE, PROPAGATION, new_user};
use crate::progress::Progress;
use crate::sandbox::{self, Wanted};
use crate::stack;
use crate::state::{Kind, Settings, State};
use crate::wait;

/// Brings up sandbox, charts and example, makes the calls and leaves all
/// running; a new sandbox publishes its edge on `port` of 127.0.0.1.
///
/// # Errors
/// The first step that failed or the first call that was not answered as it must be.
pub async fn run(state: &State, port: u16) -> Result<()> {
    let progress = Progress::default();
    let is_existing = matches!(state.settings()?, Some(Settings { cluster: Kind::Existing { .. }, .. }));
    if !is_existing {
        sandbox::up(state, &Wanted::Full { network: None, published: vec![port] }, &progress).await?;
    }
    let played = Box::pin(sandbox::unless_interrupted(async {
        stack::install(state, &progress).await?;
        let example = progress.step("example", Example::start(state)).await?;
        let token = progress.step("calls", play(&example)).await?;
        anyhow::Ok((example, token))
    }));
    let (example, token) = played
        .await
        .context("the cluster stays up: `cargo sandbox demo` goes on, `cargo sandbox down` ends it")?;
    eprintln!("\n{}", progress.table());
    println!(
        "\nAll of it keeps running. Look around:\n\
         \n  export KUBECONFIG={}\
         \n  alias kubectl={}\
         \n  kubectl get peristyle -n {NAMESPACE}\
         \n  kubectl describe psvc greeter -n {NAMESPACE}\n\
         \n  URL    http://{GREETER}:{port}  (127.0.0.1)\
         \n  token  {token}  (for 15 minutes)\n\
         \n  cargo sandbox down  removes everything",
        example.cluster.kubeconfig().display(),
        state.program("kubectl").display(),
        port = example.edge.address().port(),
    );
    Ok(())
}

async fn play(example: &Example) -> Result<String> {
    let port = example.edge.address().port();
    println!("\n$ call greeter.v1.GreeterService/Greet at http://{GREETER}:{port}");
    refused(example, "without a token", None, (Code::Unauthenticated, "authentication required")).await?;

    let user = new_user("alice")?;
    let token = example.token(&user).await?;
    println!("  {:<40} {user} at http://{AUTH}:{port}", "register, log in");
    refused(
        example,
        "with the token, without the relation",
        Some(&token),
        (Code::PermissionDenied, "permission denied"),
    )
    .await?;

    example.allow(&[&user]).await?;
    println!("  {:<40} Greeting:greeter#greeters@{user}", "tuple added to AuthPolicy greeter");
    let before = stored_greetings(example).await?;
    greeted(example, &token).await?;
    let stored = stored_greetings(example).await?;
    ensure!(stored > before, "the greeting was not stored: {before} rows before, {stored} after");
    println!("  {:<40} {stored} rows", "stored in greeter's database");

    // Keto comes back whatever the call was answered.
    let without_keto = async {
        example.scale("keto", 0).await?;
        println!("  Keto stopped");
        let unavailable = (Code::Unavailable, "authorization unavailable");
        refused(example, "with token and relation", Some(&token), unavailable).await
    };
    let without_keto = without_keto.await;
    example.scale("keto", 1).await?;
    without_keto?;
    println!("  Keto back");
    greeted(example, &token).await?;
    Ok(token)
}

/// The message tells the edge's refusal from one of the workload, which asks for a token itself.
async fn refused(
    example: &Example,
    what: &str,
    token: Option<&str>,
    (code, message): (Code, &str),
) -> Result<()> {
    let status =
        wait::until(
            &format!("the call {what} is refused with {code:?}"),
            PROPAGATION,
            async || match example.edge.greet(GREETER, token, "Ada").await {
                Err(status) if status.code() == code && status.message() == message => Ok(status),
                Err(status) => bail!("answered {:?}: {}", status.code(), status.message()),
                Ok(answer) if token.is_none() => {
                    Err(wait::Never(anyhow::anyhow!("it was ALLOWED: {}", answer.message)).into())
                }
                Ok(answer) => bail!("it was allowed: {}", answer.message),
            },
        )
        .await?;
    println!("  {what:<40} {}: {}", constant(status.code()), status.message());
    Ok(())
}

async fn greeted(example: &Example, token: &str) -> Result<()> {
    let answer = wait::until("the call is answered", PROPAGATION, async || {
        example.edge.greet(GREETER, Some(token), "Ada").await.context("the call was refused")
    })
    .await?;
    println!("  {:<40} OK: {}", "with token and relation", answer.message);
    Ok(())
}

async fn stored_greetings(example: &Example) -> Result<u64> {
    let count = stack::query(&example.cluster, "demo_greeter", "select count(*) from app.greetings").await?;
    count.parse().with_context(|| format!("psql answered {count:?} where a number was expected"))
}

/// The status as gRPC's documentation writes it.
fn constant(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::Unavailable => "UNAVAILABLE",
        _ => code.description(),
    }
}
