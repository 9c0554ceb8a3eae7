// The preview looks as the annotator's page does where scripts run. Only the guidelines open and close.

document.documentElement.classList.add("scripted");

const workspace = document.querySelector(".workspace");
for (const id of ["guidelines-button", "guidelines-close"]) {
  document.getElementById(id)?.addEventListener("click", (event) => {
    event.preventDefault();
    workspace.classList.toggle("with-guidelines");
  });
}
