{{/* Labels of a pod that never change; takes (dict "root" $ "component" "…"). */}}
{{- define "stack.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* All labels; takes the same. */}}
{{- define "stack.labels" -}}
{{ include "stack.selector" . }}
app.kubernetes.io/part-of: peristyle-stack
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Name, namespace and labels of an object; takes the same, and optionally a name. */}}
{{- define "stack.metadata" -}}
name: {{ .name | default .component }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "stack.labels" . | nindent 2 }}
{{- end }}

{{/* Labels and annotations that make a class the default one. */}}
{{- define "stack.class" -}}
labels: {{- include "stack.labels" (dict "root" $ "component" "classes") | nindent 2 }}
annotations: {peristyle.dev/is-default-class: "true"}
{{- end }}

{{/* Image and its pull policy; takes (list image defaultTag). */}}
{{- define "stack.image" -}}
{{- $image := index . 0 -}}
image: {{ $image.ref | default (printf "%s:%s" $image.repository ($image.tag | default (index . 1))) }}
imagePullPolicy: IfNotPresent
{{- end }}

{{/* What all pods say; takes (dict "root" $ "component" "…" "user" n "group" n). */}}
{{- define "stack.pod" -}}
# A token reaches only the containers that mount it.
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .group | default .user }}
  fsGroup: {{ .group | default .user }}
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
- topologyKey: kubernetes.io/hostname
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "stack.selector" . | nindent 6 }}
{{- end }}

{{- define "stack.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The volume that the API server's clients mount. */}}
{{- define "stack.tokenVolume" -}}
- name: api-token
  projected:
    defaultMode: 0440
    sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3600}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}

{{- define "stack.tokenMount" -}}
- {name: api-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/*
The side-car that hands a ConfigMap of the operator to a component as a file; takes
(dict "root" $ "component" "…" "configMap" "…" "key" "…" "dir" "…"). It is
ready when the component has loaded what the ConfigMap holds, and so is the pod:
nobody asks an instance that knows yesterday's rules. The component starts once
the file is there, because Keto does not start without it; until the operator has
written the ConfigMap, the file grants nothing.
*/}}
{{- define "stack.agent" -}}
- name: agent
  {{- include "stack.image" (list .root.Values.agent.image .root.Chart.AppVersion) | nindent 2 }}
  restartPolicy: Always
  args:
  - agent
  - --component={{ .component }}
  - --namespace={{ .root.Release.Namespace }}
  - --config-map={{ .configMap }}
  - --key={{ .key }}
  - --file={{ .dir }}/{{ .key }}
  - --listen=0.0.0.0:8081
  env:
  - {name: PERISTYLE_LOG, value: {{ .root.Values.agent.log | quote }}}
  ports:
  - {name: agent, containerPort: 8081}
  startupProbe: {httpGet: {path: /filez, port: agent}, periodSeconds: 1, failureThreshold: 60}
  livenessProbe: {httpGet: {path: /livez, port: agent}}
  # It asks the component. Three refusals: a change takes the component a moment.
  readinessProbe: {httpGet: {path: /readyz, port: agent}, periodSeconds: 2, timeoutSeconds: 3, failureThreshold: 3}
  resources: {{- toYaml .root.Values.agent.resources | nindent 4 }}
  {{- include "stack.containerSecurity" . | nindent 2 }}
  volumeMounts:
  - {name: delivered, mountPath: {{ .dir }}}
  {{- include "stack.tokenMount" . | nindent 2 }}
{{- end }}

{{/* Account and permission of an agent: its ConfigMap and no other; takes the same. */}}
{{- define "stack.agentAccess" -}}
apiVersion: v1
kind: ServiceAccount
metadata: {{- include "stack.metadata" . | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{- include "stack.metadata" . | nindent 2 }}
rules:
# list and watch are granted for a name when the request selects metadata.name.
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [{{ .configMap }}]
  verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{- include "stack.metadata" . | nindent 2 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .component }}}
subjects:
- {kind: ServiceAccount, name: {{ .component }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{/* A PodDisruptionBudget; takes (dict "root" $ "component" "…"). */}}
{{- define "stack.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "stack.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "stack.selector" . | nindent 6 }}
{{- end }}
