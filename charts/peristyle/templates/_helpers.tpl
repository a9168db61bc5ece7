{{/* Labels of a pod that never change; takes (dict "root" $ "component" "…"). */}}
{{- define "peristyle.selector" -}}
app.kubernetes.io/name: peristyle
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* All labels; takes the same. */}}
{{- define "peristyle.labels" -}}
{{ include "peristyle.selector" . }}
app.kubernetes.io/part-of: peristyle
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* The image's reference. */}}
{{- define "peristyle.image" -}}
{{- $tagged := printf "%s:%s" .repository (.tag | default $.appVersion) -}}
{{- $pinned := printf "%s@%s" .repository .digest -}}
{{- .ref | default (ternary $pinned $tagged (not (empty .digest))) -}}
{{- end }}

{{/* What both Deployments say about their pods; takes the same as selector. */}}
{{- define "peristyle.pod" -}}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- with .root.Values.user }}
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "peristyle.selector" $ | nindent 6 }}
  # Pods of one rollout are compared with each other only.
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}

{{- define "peristyle.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
